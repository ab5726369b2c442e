"""Telling the stages of an answer apart while it is written, in whatever pieces it comes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cobra.models.generation.stage_guard import STAGE_TAGS, TAIL

_TAG = re.compile(r"<\s*+(?P<slash>/?+)\s*+(?P<name>" + "|".join(STAGE_TAGS) + r")\s*+>")
# What may yet become a tag, at the end of what there is.
_BEGUN = re.compile(r"<\s*+/?+\s*+(?P<name>[A-Z]*+)\s*+\Z")


@dataclass(frozen=True)
class Part:
    """Some text of an answer, without its tags.

    block: Index of the block that it belongs to: a stage, or what stands outside of stages.
    stage: Name of the stage, or None outside.
    text: Comes after what the block has; empty where a stage has just been opened.
    """

    block: int
    stage: str | None
    text: str


class StageReader:
    """Splits the text of one answer into blocks; tags, and white space around blocks, belong to none.

    An opening tag begins a block, also where the one before was not closed. A closing tag ends a stage of its name;
    any other is dropped. Nothing else in a text has a meaning.
    """

    def __init__(self) -> None:
        self._held = ""
        self._stage: str | None = None
        self._block = -1
        # White space is told once something comes after it.
        self._space = ""
        self._filled = False
        self._open = False

    def feed(self, text: str) -> Iterator[Part]:
        """Take the next piece of text; yield what is sure."""
        held = self._held + text
        place = 0
        for tag in _TAG.finditer(held):
            yield from self._text(held[place : tag.start()])
            yield from self._tag(tag["name"], bool(tag["slash"]))
            place = tag.end()
        held = held[place:]
        begun = _BEGUN.search(held, max(len(held) - TAIL, 0))
        sure = begun.start() if begun and any(tag.startswith(begun["name"]) for tag in STAGE_TAGS) else len(held)
        self._held = held[sure:]
        yield from self._text(held[:sure])

    def finish(self) -> Iterator[Part]:
        """Yield what was held back, at the end of the answer."""
        held, self._held = self._held, ""
        yield from self._text(held)

    def _tag(self, name: str, closing: bool) -> Iterator[Part]:
        if closing and name != self._stage:
            return
        self._stage = None if closing else name
        self._open = False
        if not closing:
            yield from self._begin()

    def _begin(self) -> Iterator[Part]:
        self._block += 1
        self._open, self._filled, self._space = True, False, ""
        yield Part(self._block, self._stage, "")

    def _text(self, text: str) -> Iterator[Part]:
        solid = text.rstrip()
        if solid and not self._open:
            yield from self._begin()
        if solid:
            whole = self._space + solid
            yield Part(self._block, self._stage, whole if self._filled else whole.lstrip())
            self._filled, self._space = True, ""
        if self._open:
            self._space += text[len(solid) :]
