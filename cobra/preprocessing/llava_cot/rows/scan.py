"""Scan the rows once: keep those of the right form, and the little of each that selecting needs."""

import hashlib
from array import array
from collections.abc import Collection
from dataclasses import dataclass
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


def scan_rows(train: Path, seed: int) -> Scan:
    """Read all rows of the published JSON lines once, passing over the malformed; the seed decides `draws`."""
    lines, sources, images = array("q"), array("i"), array("i")
    draws, contents, ids = bytearray(), bytearray(), bytearray()
    source_names: dict[str, int] = {}
    image_paths: dict[str, int] = {}
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
            lines.append(number)
            sources.append(source_names.setdefault(source_of(value), len(source_names)))
            images.append(-1 if row.image is None else image_paths.setdefault(row.image, len(image_paths)))
            draws += hashlib.blake2b(content, digest_size=8, key=key).digest()
            contents += content
            ids += row_id
    firsts = _first_places(np.frombuffer(bytes(contents), "V16"))
    distinct = np.flatnonzero(firsts == np.arange(len(lines)))
    repeats_id = np.zeros(len(lines), bool)
    repeats_id[distinct] = _first_places(np.frombuffer(bytes(ids), "V8")[distinct]) != np.arange(len(distinct))
    return Scan(
        np.array(lines, np.int64),
        np.array(sources, np.int32),
        np.array(images, np.int32),
        np.frombuffer(bytes(draws), "<u8"),
        np.array(lines, np.int64)[firsts],
        repeats_id,
        list(source_names),
        list(image_paths),
    )


def _first_places(values: NDArray[np.void]) -> NDArray[np.int64]:
    """Return, for each value, the index of the first one that is equal to it."""
    _, firsts, inverse = np.unique(values, return_index=True, return_inverse=True)
    return firsts[inverse]
