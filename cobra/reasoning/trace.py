"""Answers in the four stages of LLaVA-CoT (arXiv 2411.10440): reading them apart and writing them.

The published form is ``<SUMMARY> text </SUMMARY>``, then CAPTION, REASONING and CONCLUSION alike, a blank line between.
The tags are ordinary upper-case text, and both the published rows and generated answers break the form: stages are
left out, repeated or cut off at the token limit.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

STAGES = ("summary", "caption", "reasoning", "conclusion")

# What may be wrong with the form of an answer; the values of `ReasoningTrace.problems`.
UNCLOSED = "unclosed stage"
DUPLICATED = "duplicated stage"
OUT_OF_ORDER = "stage out of order"
EMPTY = "empty stage"
STRAY_CLOSING = "stray closing tag"
TEXT_OUTSIDE = "text outside the stages"

# Possessive: a run of spaces is read once, so that hostile text costs linear time.
_TAG = re.compile(r"<\s*+(/?+)\s*+(SUMMARY|CAPTION|REASONING|CONCLUSION)\s*+>")


@dataclass(frozen=True)
class ReasoningTrace:
    """The stages of one answer; a stage that is absent is None, every text is stripped."""

    summary: str | None = None
    caption: str | None = None
    reasoning: str | None = None
    conclusion: str | None = None
    problems: tuple[str, ...] = ()
    """What is wrong with the form, apart from absent stages: a sorted subset of this module's constants."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the stages that are absent, out of `STAGES` and in that order."""
        return tuple(stage for stage in STAGES if getattr(self, stage) is None)

    @property
    def texts(self) -> list[tuple[str, str]]:
        """(stage, text) of those that are there, in the order of `STAGES`."""
        found = [(stage, getattr(self, stage)) for stage in STAGES]
        return [(stage, text) for stage, text in found if text is not None]

    @property
    def faults(self) -> list[str]:
        """All that is wrong with the form, in words; empty for a valid answer, and for one without any stage."""
        return [*(f"without {stage.upper()}" for stage in self.missing), *self.problems] if self.texts else []

    @property
    def is_valid(self) -> bool:
        """Whether all four stages are there once, filled, closed, in order, and only white space is around them."""
        return not self.missing and not self.problems


def extract_reasoning_trace(text: str) -> ReasoningTrace:
    """Read an answer apart, taking what is there; never raises, in time linear in the text.

    A stage's text runs from its opening tag to the next tag of any kind, or to the end of the answer: so an unclosed
    CONCLUSION, which the published rows hold, is read to the end. Of a repeated stage the first counts. White space
    around the text and inside the tags is free, upper case is not. An answer without tags has every stage missing.
    """
    stages: dict[str, str] = {}
    problems: set[str] = set()
    for stage, body, closed_by in _segments(text):
        if closed_by not in (None, stage):
            problems.add(STRAY_CLOSING)
        if stage is None:
            if body:
                problems.add(TEXT_OUTSIDE)
            continue
        if closed_by != stage:
            problems.add(UNCLOSED)
        if stage in stages:
            problems.add(DUPLICATED)
            continue
        if not body:
            problems.add(EMPTY)
        if any(STAGES.index(stage) < STAGES.index(earlier) for earlier in stages):
            problems.add(OUT_OF_ORDER)
        stages[stage] = body
    return ReasoningTrace(**stages, problems=tuple(sorted(problems)))


def find_conclusion_end(text: str) -> int | None:
    """Return the place behind an answer's CONCLUSION: its closing tag, or its text where it is unclosed.

    As in :func:`extract_reasoning_trace` the first CONCLUSION counts, and its text ends at the next tag of any kind.

    Returns:
        A number of characters; None where there is no CONCLUSION.
    """
    start: int | None = None
    stop = len(text)
    for tag in _TAG.finditer(text):
        if start is not None:
            if tag[1] and tag[2] == "CONCLUSION":
                return tag.end()
            stop = tag.start()
            break
        if not tag[1] and tag[2] == "CONCLUSION":
            start = tag.end()
    return None if start is None else start + len(text[start:stop].rstrip())


def format_reasoning_trace(trace: ReasoningTrace) -> str:
    """Write the stages that are there in the published form and order; `problems` plays no part."""
    parts = []
    for stage in STAGES:
        body = getattr(trace, stage)
        if body is not None:
            parts.append(f"<{stage.upper()}> {body} </{stage.upper()}>")
    return "\n\n".join(parts)


def _segments(text: str) -> Iterator[tuple[str | None, str, str | None]]:
    """Cut `text` at its tags into (the stage it is in or None, the stripped text, the stage whose closing tag ends it).

    The last entry is None where the text ends at an opening tag or with the answer.
    """
    stage: str | None = None
    start = 0
    for tag in _TAG.finditer(text):
        name = tag[2].lower()
        closing = bool(tag[1])
        yield stage, text[start : tag.start()].strip(), name if closing else None
        stage = None if closing else name
        start = tag.end()
    yield stage, text[start:].strip(), None
