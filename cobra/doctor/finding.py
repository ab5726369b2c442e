"""Findings of an examination: one line each, with the command that mends it."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


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
