"""The four stages of a LLaVA-CoT answer (arXiv 2411.10440): their tags, reading whole and growing answers, writing.

The published form is ``<SUMMARY> text </SUMMARY>``, then CAPTION, REASONING and CONCLUSION alike, a blank line between.
The tags are ordinary upper-case text, and both the published rows and generated answers break the form: stages are
left out, repeated or cut off at the token limit.

A stage runs from its opening tag to the next tag of any kind, or to the end of the answer; so an unclosed CONCLUSION,
which the published rows hold, is read to the end. White space around texts and inside tags is free, upper case is not.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

STAGES = ("summary", "caption", "reasoning", "conclusion")
STAGE_TAGS = tuple(stage.upper() for stage in STAGES)
STAGE_BREAK = "\n\n"
"""Stands between two stages."""
MAX_TAG_LENGTH = 64
"""Characters at the end of a growing text in which a tag is looked for."""

# Faults of an answer's form; the values of `ReasoningTrace.problems`.
UNCLOSED = "unclosed stage"
DUPLICATED = "duplicated stage"
OUT_OF_ORDER = "stage out of order"
EMPTY = "empty stage"
STRAY_CLOSING = "stray closing tag"
TEXT_OUTSIDE = "text outside the stages"

# Possessive: a run of spaces is read once, so that hostile text costs linear time.
STAGE_TAG = re.compile(rf"<\s*+(?P<slash>/?+)\s*+(?P<name>{'|'.join(STAGE_TAGS)})\s*+>")
PARTIAL_TAG = re.compile(r"<\s*+(?P<slash>/?+)\s*+(?P<name>[A-Z]*+)\s*+(?P<end>>?+)")
"""A tag of any name, as far as it is written."""


@dataclass(frozen=True)
class ReasoningTrace:
    """The stages of one answer; a stage that is absent is None, every text is stripped."""

    summary: str | None = None
    caption: str | None = None
    reasoning: str | None = None
    conclusion: str | None = None
    problems: tuple[str, ...] = ()
    """Faults of the form, apart from absent stages: a sorted subset of this module's constants."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the stages that are absent, out of `STAGES` and in that order."""
        return tuple(stage for stage in STAGES if getattr(self, stage) is None)

    @property
    def texts(self) -> list[tuple[str, str]]:
        """(stage, text) of those that are there, in the order of `STAGES`."""
        bodies = [(stage, getattr(self, stage)) for stage in STAGES]
        return [(stage, text) for stage, text in bodies if text is not None]

    @property
    def faults(self) -> list[str]:
        """All faults of the form, in words; empty for a valid answer, and for one without any stage."""
        return [*(f"without {stage.upper()}" for stage in self.missing), *self.problems] if self.texts else []

    @property
    def is_valid(self) -> bool:
        """True if all four stages are there once, filled, closed and in order, with only white space around them."""
        return not self.missing and not self.problems


def extract_reasoning_trace(text: str) -> ReasoningTrace:
    """Split an answer into its stages, by the rules of this module; never raises, in time linear in the text.

    Of a repeated stage the first counts. An answer without tags has every stage missing.
    """
    stages: dict[str, str] = {}
    problems: set[str] = set()
    for stage, body, closed_by, _ in _segments(text):
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


def given_conclusion(answer: str) -> tuple[str, str]:
    """Return what of an answer is taken for its conclusion, and where it was found.

    That is the CONCLUSION; of an answer without any stage, as a model gives that never learned them, the whole `text`;
    of one with stages but without a CONCLUSION `nothing`: the model did not come to one.
    """
    trace = extract_reasoning_trace(answer)
    if trace.conclusion:
        return trace.conclusion, "conclusion"
    return ("", "nothing") if trace.texts else (answer.strip(), "text")


def find_conclusion_end(text: str) -> int | None:
    """Return the characters up to the end of an answer's first CONCLUSION, its closing tag included; None without."""
    return next((end for stage, _, _, end in _segments(text) if stage == STAGES[-1]), None)


def format_reasoning_trace(trace: ReasoningTrace) -> str:
    """Write the stages that are there in the published form and order; `problems` plays no part."""
    return STAGE_BREAK.join(f"<{stage.upper()}> {body} </{stage.upper()}>" for stage, body in trace.texts)


def last_closed_stage(text: str) -> str | None:
    """Return the tag name of the stage whose closing tag ends a text, white space aside, or None."""
    tail = text[-MAX_TAG_LENGTH:].rstrip()
    return next((tag["name"] for tag in STAGE_TAG.finditer(tail) if tag["slash"] and tag.end() == len(tail)), None)


def find_unfinished_tag(text: str) -> re.Match[str] | None:
    """Return the match of `PARTIAL_TAG` at the end of a text that may yet become a stage's tag, or None."""
    start = text.rfind("<", max(len(text) - MAX_TAG_LENGTH, 0))
    tag = PARTIAL_TAG.match(text, start) if start >= 0 else None
    if tag is None or tag["end"] or tag.end() < len(text):
        return None
    return tag if any(name.startswith(tag["name"]) for name in STAGE_TAGS) else None


def _segments(text: str) -> Iterator[tuple[str | None, str, str | None, int]]:
    """Cut a text at its tags into (stage or None, stripped text, stage whose closing tag ends it or None, its end)."""
    stage: str | None = None
    start = 0
    for tag in STAGE_TAG.finditer(text):
        name = tag["name"].lower()
        closed_by = name if tag["slash"] else None
        body = text[start : tag.start()].rstrip()
        yield stage, body.lstrip(), closed_by, tag.end() if closed_by and closed_by == stage else start + len(body)
        stage = None if closed_by else name
        start = tag.end()
    body = text[start:].rstrip()
    yield stage, body.lstrip(), None, start + len(body)


@dataclass(frozen=True)
class Part:
    """A piece of an answer's text, without tags."""

    block: int
    """Index of the stage, or of the text outside the stages, that it belongs to."""
    stage: str | None
    """Tag name of the stage, or None outside."""
    text: str
    """Follows what the block has; empty where a stage has just been opened."""


class StageReader:
    """Splits the text of one answer into blocks by the rules of this module, in whatever pieces it comes.

    Tags, and white space around blocks, belong to no block.
    """

    def __init__(self) -> None:
        self._held = ""
        self._stage: str | None = None
        self._block = -1
        # White space is yielded once something comes after it.
        self._space = ""
        self._filled = False
        self._open = False

    def feed(self, text: str) -> Iterator[Part]:
        """Read the next piece of text; yield what is certain."""
        pending = self._held + text
        start = 0
        for tag in STAGE_TAG.finditer(pending):
            yield from self._add_text(pending[start : tag.start()])
            self._stage, self._open = None if tag["slash"] else tag["name"], False
            if self._stage is not None:
                yield from self._open_block()
            start = tag.end()
        unfinished = find_unfinished_tag(pending[start:])
        certain = start + unfinished.start() if unfinished else len(pending)
        self._held = pending[certain:]
        yield from self._add_text(pending[start:certain])

    def finish(self) -> Iterator[Part]:
        """Yield the text that was held back, at the end of the answer."""
        pending, self._held = self._held, ""
        yield from self._add_text(pending)

    def _open_block(self) -> Iterator[Part]:
        self._block += 1
        self._open, self._filled, self._space = True, False, ""
        yield Part(self._block, self._stage, "")

    def _add_text(self, text: str) -> Iterator[Part]:
        solid = text.rstrip()
        if solid and not self._open:
            yield from self._open_block()
        if solid:
            whole = self._space + solid
            yield Part(self._block, self._stage, whole if self._filled else whole.lstrip())
            self._filled, self._space = True, ""
        if self._open:
            self._space += text[len(solid) :]
