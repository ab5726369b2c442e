"""Samples of rows, a few of every source and of every defect, for a person to look at."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cobra.preprocessing.datasets.rows import Defect
from cobra.preprocessing.llava_cot.rows.raw_row import Row
from cobra.reasoning.trace import ReasoningTrace
from cobra.util.printable import printable

# Together they bound the memory: some 10 MB on hostile rows, less than 1 MB on the published ones.
_SOURCES = 50
_ROWS = 2
_TURNS = 3
_CHARACTERS = 1500

_REJECTED = 5
_SHORT = 200


@dataclass(frozen=True)
class SampleAnswer:
    """A question and its answer, long texts cut."""

    question: str
    stages: list[tuple[str, str]]
    """(stage, text) of those that are there, in `STAGES`' order; empty for an answer without tags."""
    text: str
    """The whole answer where it has no stages, else empty."""
    faults: list[str]
    """Faults of its form; empty for an answer without tags."""


@dataclass(frozen=True)
class SampleRow:
    """A training row."""

    row_id: str
    image: str | None
    """Path as published."""
    answers: list[SampleAnswer]
    more: int
    """Number of further questions in the row."""


class RejectedRow(NamedTuple):
    """A row that was rejected."""

    line: int
    row_id: str
    reason: str


class Samples:
    """Rows drawn while others are counted.

    A training row is drawn by a hash of its id, image and first question: whatever else is in the file, the same rows
    of a source come first. Of the rejected rows the first ones are kept.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[bytes, SampleRow]]] = {}
        self.rejected: dict[str, list[RejectedRow]] = {}
        """By `Defect`."""

    def offer(self, row: Row, source: str, traces: list[ReasoningTrace]) -> None:
        """Keep a training row, with the traces of its answers, if it is one of its source's samples.

        Sources after the first 50 get none.
        """
        if source not in self._rows and len(self._rows) >= _SOURCES:
            return
        kept = self._rows.setdefault(source, [])
        key = f"{row.id}\0{row.image}\0{row.turns[0]['value'][:_SHORT]}"
        order = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=16).digest()
        if len(kept) == _ROWS and order >= kept[-1][0]:
            return
        kept.append((order, _sample(row, traces)))
        kept.sort(key=lambda entry: entry[0])
        del kept[_ROWS:]

    def reject(self, defect: Defect, entry: Mapping[str, Any]) -> None:
        """Keep a rejected row (`line`, `id` and `reason`) if it is one of the first of its defect."""
        kept = self.rejected.setdefault(defect.value, [])
        if len(kept) < _REJECTED:
            row_id = "" if entry["id"] is None else printable(str(entry["id"]), _SHORT)
            kept.append(RejectedRow(entry["line"], row_id, printable(entry["reason"], _SHORT)))

    def of_source(self, source: str) -> list[SampleRow]:
        """Return the rows that were drawn of a source, in the order of the draw."""
        return [row for _, row in self._rows.get(source, ())]


def _sample(row: Row, traces: list[ReasoningTrace]) -> SampleRow:
    questions = [turn["value"] for turn in row.turns[::2]]
    answers = [
        _answer(question, answer, trace)
        for question, answer, trace in zip(questions[:_TURNS], row.answers, traces, strict=False)
    ]
    return SampleRow(printable(str(row.id), _SHORT), row.image, answers, max(len(questions) - _TURNS, 0))


def _answer(question: str, answer: str, trace: ReasoningTrace) -> SampleAnswer:
    stages = [(stage, printable(text, _CHARACTERS)) for stage, text in trace.texts]
    text = "" if stages else printable(answer, _CHARACTERS)
    return SampleAnswer(printable(question, _CHARACTERS), stages, text, trace.faults)
