"""Scan the rows once: keep those of the right form, and the little of each that selecting needs."""

import hashlib
from array import array
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cobra.preprocessing.datasets.rows import RowError, source_of
from cobra.preprocessing.llava_cot.rows.raw_row import check_row, parse_line, read_lines, row_digests
from cobra.preprocessing.progress import byte_progress
from cobra.util.errors import UserError


@dataclass(frozen=True)
class Scan:
    """The rows of the right form in the order of the file; the arrays have one entry for each, 40 bytes in all."""

    lines: NDArray[np.int64]
    """Line number, from 1."""
    sources: NDArray[np.int32]
    """Index into `source_names`."""
    images: NDArray[np.int32]
    """Index into `image_paths`; -1 for a row of text only."""
    draws: NDArray[np.uint64]
    """A number that seed and content decide: rows are drawn in its order."""
    first_lines: NDArray[np.int64]
    """Line of the first row with the same id, image and turns; its own where there is none before it."""
    repeats_id: NDArray[np.bool_]
    """True where an earlier row with another image or other turns has the same id."""
    source_names: list[str]
    image_paths: list[str]
    """Every image once, as published."""

    @property
    def is_first(self) -> NDArray[np.bool_]:
        """True where no earlier row is the same (rows,), bool."""
        return self.first_lines == self.lines

    def of_sources(self, names: Collection[str]) -> NDArray[np.bool_]:
        """Return which rows are of these sources; of any where `names` is empty.

        Raises:
            UserError: A source has no row; the known ones are listed.
        """
        unknown = sorted(set(names) - set(self.source_names))
        if unknown:
            raise UserError(
                f"--sources names {', '.join(unknown)}, which no row comes from; the sources are: "
                f"{', '.join(sorted(self.source_names))}"
            )
        wanted = [index for index, name in enumerate(self.source_names) if name in names or not names]
        return np.isin(self.sources, wanted)


@dataclass
class _Columns:
    """The columns of a scan while they grow."""

    lines: array = field(default_factory=lambda: array("q"))
    sources: array = field(default_factory=lambda: array("i"))
    images: array = field(default_factory=lambda: array("i"))
    draws: bytearray = field(default_factory=bytearray)
    contents: bytearray = field(default_factory=bytearray)
    ids: bytearray = field(default_factory=bytearray)


def scan_rows(train: Path, seed: int) -> Scan:
    """Read all rows once; rows of the wrong form are passed over.

    Args:
        train: The published JSON lines.
        seed: Decides the order of drawing.
    """
    columns = _Columns()
    sources: dict[str, int] = {}
    images: dict[str, int] = {}
    key = str(seed).encode()
    with byte_progress("reading rows", train.stat().st_size) as advance:
        for number, read, line in read_lines(train):
            advance(read)
            try:
                value = parse_line(line)
                row = check_row(value, number)
                content, row_id = row_digests(row, value.get("id"))
            except RowError:
                continue
            columns.lines.append(number)
            columns.sources.append(sources.setdefault(source_of(value), len(sources)))
            columns.images.append(-1 if row.image is None else images.setdefault(row.image, len(images)))
            columns.draws += hashlib.blake2b(content, digest_size=8, key=key).digest()
            columns.contents += content
            columns.ids += row_id
    return _scan(columns, list(sources), list(images))


def _scan(columns: _Columns, source_names: list[str], image_paths: list[str]) -> Scan:
    lines = np.array(columns.lines, np.int64)
    firsts = _first_places(np.frombuffer(bytes(columns.contents), "V16"))
    repeats_id = np.zeros(len(lines), bool)
    distinct = np.flatnonzero(firsts == np.arange(len(lines)))
    first_ids = _first_places(np.frombuffer(bytes(columns.ids), "V8")[distinct])
    repeats_id[distinct] = first_ids != np.arange(len(distinct))
    return Scan(
        lines,
        np.array(columns.sources, np.int32),
        np.array(columns.images, np.int32),
        np.frombuffer(bytes(columns.draws), "<u8"),
        lines[firsts],
        repeats_id,
        source_names,
        image_paths,
    )


def _first_places(values: NDArray[np.void]) -> NDArray[np.int64]:
    """Return, for each value, the index of the first one that is equal to it."""
    _, firsts, inverse = np.unique(values, return_index=True, return_inverse=True)
    return firsts[inverse]
