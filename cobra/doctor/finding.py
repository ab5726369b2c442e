"""Findings of an examination: one line each, with the command that mends it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]
_MARKS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
_INDENT = " " * 8


@dataclass(frozen=True)
class Finding:
    """State of one thing that was looked at."""

    name: str
    """Subject: `driver`."""
    state: State
    """`problem` stops a run, or makes it far slower than this machine allows; `note` may matter."""
    text: str
    """Facts in one line."""
    remedy: str = ""
    """Command or setting that mends it; empty where nothing has to be."""


def print_findings(findings: Iterable[Finding]) -> int:
    """Print findings, a line each with the remedy below, and how many problems there are; return that number."""
    problems = 0
    for finding in findings:
        first, *others = finding.text.split("\n")
        print(f"{_MARKS[finding.state]} {finding.name}: {first}")
        for line in [*others, *([f"-> {finding.remedy}"] if finding.remedy else [])]:
            print(_INDENT + line)
        problems += finding.state == "problem"
    print(f"problems: {problems}" if problems else "no problem was found")
    return problems
