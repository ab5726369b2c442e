"""Packed rows: all files as one list, and where the images of rows are opened, inside or in a folder."""

import io
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from cobra.preprocessing.datasets.row_keys import Row
from cobra.preprocessing.packed.columns import make_row, reference, referred_row
from cobra.preprocessing.packed.files import is_packed, packed_files, sampled_sha256
from cobra.preprocessing.packed.shards import Shard, open_shard
from cobra.util.errors import UserError
from cobra.util.images import BadImageError


class PackedRows:
    """Rows of a Parquet file, of a folder of them, or of a folder that `save_to_disk` wrote, in the files' order."""

    def __init__(self, path: Path) -> None:
        """Open the files; nothing but what they state of themselves is read.

        Raises:
            UserError: A file is absent, not of its form, or breaks off, or the folder holds several splits.
        """
        self.path = path
        self._shards: list[Shard] = [open_shard(file) for file in packed_files(path)]
        self._ends = list(accumulate(shard.rows for shard in self._shards))

    def __len__(self) -> int:
        return self._ends[-1]

    def records(self) -> Iterator[tuple[int, Row]]:
        """Yield the number of every row, from 0 over all files, and the row as JSON would have it.

        An image inside stands there as :func:`cobra.preprocessing.packed.columns.reference` names it.

        Raises:
            UserError: A file is damaged.
        """
        number = 0
        for shard in self._shards:
            try:
                for values, items in shard.records():
                    images = [reference(path, number) if is_inside else str(path) for path, is_inside in items]
                    yield number, make_row(values, images)
                    number += 1
            except (pa.ArrowException, OSError) as error:
                raise UserError(
                    f"{self.row_name(number)} or one of the next few cannot be read "
                    f"({' '.join(str(error).split())}): the file is damaged; fetch or write it again"
                ) from error

    def row_name(self, number: int) -> str:
        """Return the name of a row in errors: its number, from 0, in its file."""
        index = min(bisect_right(self._ends, number), len(self._shards) - 1)
        return f"row {number - (self._ends[index - 1] if index else 0)} of {self._shards[index].path}"

    def image(self, number: int) -> bytes | None:
        """Return the encoded image inside a row; None where it has none.

        Raises:
            OSError: The file is damaged or breaks off.
        """
        index = bisect_right(self._ends, number)
        if index == len(self._shards):
            return None
        return self._shards[index].image(number - (self._ends[index - 1] if index else 0))


class RowImages:
    """Images of the rows of an annotation file, which are inside it or files of a folder.

    Pickled it is the two paths: another process opens the files for itself.
    """

    def __init__(self, annotation_file: Path, folder: Path) -> None:
        """Remember where rows and images are."""
        self.annotation_file, self.folder = annotation_file, folder
        self._is_packed = is_packed(annotation_file)

    def __reduce__(self) -> tuple[Any, ...]:
        return RowImages, (self.annotation_file, self.folder)

    @cached_property
    def _rows(self) -> PackedRows:
        return PackedRows(self.annotation_file)

    def is_inside(self, image: str) -> bool:
        """Return True if an image is inside the annotation file, by its path in the row."""
        return self._is_packed and referred_row(image) is not None

    def open(self, image: str) -> Path | io.BytesIO:
        """Return the path of an image, or the bytes of one inside, each time a new stream.

        Raises:
            BadImageError: It is inside, and the file is damaged or has no image there.
        """
        row = referred_row(image) if self._is_packed else None
        if row is None:
            return self.folder / image
        try:
            encoded = self._rows.image(row)
        except OSError as error:
            raise BadImageError(str(error)) from error
        if encoded is None:
            raise BadImageError(f"{self._rows.row_name(row)} has no image inside")
        return io.BytesIO(encoded)


def packed_sha256(path: Path) -> tuple[str, str]:
    """Return a fingerprint of packed rows, and one of the names and times of change of their files.

    Raises:
        UserError: See :func:`cobra.preprocessing.packed.files.packed_files`.
    """
    files = packed_files(path)
    times = "/".join(f"{file.name}:{file.stat().st_mtime_ns}" for file in files)
    return sampled_sha256(files), times
