"""A reader of answers that are still being written: splits them into stages, in whatever pieces the text comes."""

from collections.abc import Iterator
from dataclasses import dataclass

from cobra.reasoning.trace import STAGE_TAG, find_unfinished_tag


@dataclass(frozen=True)
class Part:
    """A piece of an answer's text, without tags.

    block: Index of the block that it belongs to: a stage, or text outside the stages.
    stage: Tag name of the stage, or None outside.
    text: Follows what the block has; empty where a stage has just been opened.
    """

    block: int
    stage: str | None
    text: str


class StageReader:
    """Splits the text of one answer into blocks, by the rules of :mod:`cobra.reasoning.trace`.

    Tags, and white space around blocks, belong to no block. Nothing but a tag has a meaning.
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
