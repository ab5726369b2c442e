"""One file of packed rows: rows without their images, and the image of any row."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from cobra.preprocessing.datasets.row_keys import Row
from cobra.preprocessing.packed.columns import BYTES, PATH, Columns, PictureColumn, image_items, sort_columns
from cobra.preprocessing.packed.files import PARQUET
from cobra.util.errors import UserError
from cobra.util.mounts import can_map

# Rows of text in memory at a time, and of images.
_TEXTS, _IMAGES = 256, 8
# The last 8 bytes of a whole stream (Arrow's columnar format, "IPC streaming format").
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"

Item = tuple[str | None, bool]
"""An image of a row: its path, and True where its bytes are inside."""


class Shard(ABC):
    """A file of packed rows.

    Attributes:
        path: The file.
        columns: Its columns.
        rows: Number of its rows.
    """

    def __init__(self, path: Path, schema: pa.Schema, rows: int) -> None:
        self.path, self.rows = path, rows
        self.columns: Columns = sort_columns(schema, path)

    @abstractmethod
    def records(self) -> Iterator[tuple[Row, list[Item]]]:
        """Yield the values of every row and its images, whose bytes are not read."""

    @abstractmethod
    def _value(self, column: PictureColumn, row: int) -> Any:
        """Return a row's value of a picture column, bytes included."""

    def image(self, row: int) -> bytes | None:
        """Return the encoded image of a row; None where it has none inside.

        Raises:
            OSError: The file is damaged or breaks off.
        """
        for column in self.columns.pictures:
            try:
                items = image_items(self._value(column, row))
            except (pa.ArrowException, OSError, IndexError, StopIteration) as error:
                raise OSError(f"{self.path} is damaged or breaks off: {' '.join(str(error).split())}") from error
            for item in items:
                encoded = item.get(BYTES) if isinstance(item, dict) else item
                if encoded is not None:
                    return bytes(encoded)
        return None


def open_shard(path: Path) -> Shard:
    """Open a file of packed rows; its texts and images are not read yet.

    Raises:
        UserError: It is not of its form, or breaks off.
    """
    kind = "Parquet" if path.suffix.lower() == PARQUET else "Arrow"
    try:
        return ParquetShard(path) if kind == "Parquet" else ArrowShard(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is no whole {kind} file ({' '.join(str(error).split())}): fetch or write it again"
        ) from error


class ParquetShard(Shard):
    """A Parquet file. A row's image is found by reading the images before it in its row group, a few at a time."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, memory_map=can_map(path), pre_buffer=False)
        super().__init__(path, self._file.schema_arrow, self._file.metadata.num_rows)
        leaves = [self._file.schema.column(index).path for index in range(len(self._file.schema))]
        self._leaves: dict[str, list[int]] = {}
        for index, leaf in enumerate(leaves):
            self._leaves.setdefault(leaf.split(".")[0], []).append(index)
        self._names = leaves
        self._groups = [self._file.metadata.row_group(index).num_rows for index in range(self._file.num_row_groups)]
        self._reading: _Reading | None = None

    def records(self) -> Iterator[tuple[Row, list[Item]]]:
        """See :meth:`Shard.records`; a row group's paths are in memory at a time."""
        for group, count in enumerate(self._groups):
            images: list[list[Item]] = [[] for _ in range(count)]
            for column in self.columns.pictures:
                for row, items in enumerate(self._items(column, group)):
                    images[row] += items
            row = 0
            if not self.columns.values:
                yield from (({}, items) for items in images)
                continue
            for batch in self._batches(group, list(self.columns.values), _TEXTS):
                for values in batch.to_pylist():
                    yield values, images[row]
                    row += 1

    def _batches(self, group: int, columns: list[str], size: int) -> Iterator[pa.RecordBatch]:
        return self._file.iter_batches(size, [group], columns, use_threads=False)

    def _items(self, column: PictureColumn, group: int) -> Iterator[list[Item]]:
        """Yield the images of every row of a group, from their paths and the statistics of their bytes."""
        leaves = self._leaves[column.name]
        encoded = next((index for index in leaves if self._names[index].endswith(f".{BYTES}")), leaves[0])
        statistics = self._file.metadata.row_group(group).column(encoded).statistics
        nulls = statistics.null_count if statistics is not None and statistics.has_null_count else None
        if column.has_path:
            paths = [self._names[index] for index in leaves if self._names[index].endswith(f".{PATH}")]
            values = [value for batch in self._batches(group, paths, _TEXTS) for value in batch.column(0).to_pylist()]
            absent = sum(
                sum(item is None for item in value or [None]) if isinstance(value, list) else value is None
                for value in values
            )
            if nulls in (absent, self._file.metadata.row_group(group).column(encoded).num_values):
                is_inside = nulls == absent
                for value in values:
                    paths_of_row = [item[PATH] for item in image_items(value)]
                    yield [(path, is_inside) for path in paths_of_row if is_inside or path is not None]
                return
        for batch in self._batches(group, [column.name], _IMAGES):
            yield from (_looked_at(value) for value in batch.column(0).to_pylist())

    def _value(self, column: PictureColumn, row: int) -> Any:
        group = 0
        while row >= self._groups[group]:
            row -= self._groups[group]
            group += 1
        # Rows that follow one another, as those of an evaluation, go on where the last one was.
        reading, self._reading = self._reading, None
        if reading is None or reading.place != (column.name, group) or row < reading.start:
            reading = _Reading((column.name, group), self._batches(group, [column.name], _IMAGES))
        value = reading.value(row)
        # Not where it failed: it is begun anew.
        self._reading = reading
        return value


class _Reading:
    """A column of a row group that is read from its begin on, the last few rows in memory."""

    def __init__(self, place: tuple[str, int], batches: Iterator[pa.RecordBatch]) -> None:
        self.place, self.start = place, 0
        self._batches, self._batch = batches, next(batches)

    def value(self, row: int) -> Any:
        """Return the value of a row, which is not before `start`."""
        while row >= self.start + len(self._batch):
            self.start += len(self._batch)
            self._batch = next(self._batches)
        return self._batch.column(0)[row - self.start].as_py()


class ArrowShard(Shard):
    """An Arrow file, a stream as `save_to_disk` writes it or of the random-access form; mapped, so any row is near."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            is_stream = file.read(6) != b"ARROW1"
            file.seek(max(path.stat().st_size - len(_END_OF_STREAM), 0))
            if is_stream and file.read() != _END_OF_STREAM:
                raise OSError("it breaks off before its end")
        source = pa.memory_map(str(path)) if can_map(path) else pa.OSFile(str(path))
        reader = pyarrow.ipc.open_stream(source) if is_stream else pyarrow.ipc.open_file(source)
        count = None if is_stream else reader.num_record_batches
        self._batches = list(reader) if count is None else [reader.get_batch(index) for index in range(count)]
        super().__init__(path, reader.schema, sum(map(len, self._batches)))

    def records(self) -> Iterator[tuple[Row, list[Item]]]:
        """See :meth:`Shard.records`."""
        for batch in self._batches:
            texts = batch.select(list(self.columns.values))
            try:
                # Of images only where each begins and ends is looked at.
                batch.validate(full=True)
            except pa.ArrowException as error:
                raise UserError(f"{self.path} is damaged: {' '.join(str(error).split())}") from error
            for start in range(0, len(batch), _TEXTS):
                values = texts.slice(start, _TEXTS).to_pylist() if self.columns.values else []
                for offset in range(min(_TEXTS, len(batch) - start)):
                    items = [
                        item
                        for column in self.columns.pictures
                        for item in _scalar_items(batch.column(column.name)[start + offset])
                    ]
                    yield values[offset] if values else {}, items

    def _value(self, column: PictureColumn, row: int) -> Any:
        index = 0
        while row >= len(self._batches[index]):
            row -= len(self._batches[index])
            index += 1
        one = self._batches[index].column(column.name).slice(row, 1)
        one.validate(full=True)
        return one[0].as_py()


def _looked_at(value: Any) -> list[Item]:
    """Return the images of a value that was read with its bytes."""
    return [
        (item.get(PATH), item.get(BYTES) is not None) if isinstance(item, dict) else (None, True)
        for item in image_items(value)
        if not isinstance(item, dict) or item.get(PATH) is not None or item.get(BYTES) is not None
    ]


def _scalar_items(scalar: Any) -> list[Item]:
    """Return the images of a value of a mapped column, without touching their bytes."""
    if not scalar.is_valid:
        return []
    if isinstance(scalar, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        return [item for part in scalar for item in _scalar_items(part)]
    if not isinstance(scalar, pa.StructScalar):
        return [(None, True)]
    path = scalar[PATH].as_py() if PATH in scalar else None
    is_inside = scalar[BYTES].is_valid
    return [(path, is_inside)] if is_inside or path is not None else []
