"""Map rows from an Arrow file, so that opening parses nothing and all processes share one copy.

A list of dicts of 100,000 rows of 2 KB is parsed at every start and copied into each DataLoader worker page by page, as
reference counts are written. pyarrow alone is used: `import datasets` takes ten times as long and adds nothing here.
"""

import gc
import json
import operator
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from cobra.preprocessing.datasets.row_cache import load_or_build
from cobra.preprocessing.datasets.row_keys import REMARKS, Row, has_text, remarks_of
from cobra.preprocessing.datasets.rows import MAX_ROW_BYTES
from cobra.preprocessing.forms.training_rows import CheckedRow, check_rows, row_namer
from cobra.preprocessing.packed.files import is_packed
from cobra.preprocessing.packed.rows import packed_sha256
from cobra.preprocessing.progress import track_items
from cobra.util.conversation import PLACEHOLDER, has_other_markers, has_special_tokens
from cobra.util.errors import UserError
from cobra.util.files import atomic_path, sha256_file
from cobra.util.mounts import can_map

_ENDING = ".rows.arrow"
# Changes with the columns and with what rows are checked for.
_FORMAT = "7"
# Rows of one record batch: a position in the file is found by division.
_BATCH = 1024
# Rows that are looked at one column after the other: their texts stay in the processor's cache.
_CHUNK = 64

# A row is packed as its length, its checksum and LZ4: 2 KB take 4 us to pack and 2 to read. zlib made them a third
# smaller beside pictures of 100 KB, and took 29 us.
_CODEC = pa.Codec("lz4_raw")
_HEAD = struct.Struct("<II")

# True, as a byte, for those that `str.split` splits ASCII at.
_SPACES = bytes(byte < 128 and chr(byte).isspace() for byte in range(256))

# Columns of bytes; the others are numbers, or flags of a byte each, as NumPy has them.
_BYTES = ("json", "image")
_FLAGS = ("has_image", "special_tokens", "other_markers")
_COLUMNS = {
    **dict.fromkeys(_BYTES, pa.large_binary()),
    **dict.fromkeys(("number", "turns", "words", "words_without_placeholder"), pa.int64()),
    **dict.fromkeys(("question_bytes", "answers", "remarks"), pa.int64()),
    **dict.fromkeys(_FLAGS, pa.uint8()),
}


class Rows(Sequence[Row]):
    """Rows of an annotation file as a list that cannot be changed; each is parsed anew when it is asked for.

    Pickled it is the file's name: another process maps the same file.

    Attributes:
        annotation_file: The file that the rows come from.
        key: Identifies this state of the annotation file.
        has_image: True where a row has an image (rows,), bool.
        turns: Turns of each row (rows,), int64.
        words: Words of all turns, between white space (rows,), int64.
        words_without_placeholder: The same without `<image>`.
        special_tokens: True where a text of the row spells a special token of the tokenizer (rows,), bool.
        other_markers: True where a text of the row holds what other tools mark turns with (rows,), bool.
        question_bytes: Length of the first turn as UTF-8 (rows,), int64.
        answers: Answers of a row with a text (rows,), int64.
        remarks: As :func:`cobra.preprocessing.datasets.row_keys.remarks_of` returns them (rows,), int64.
    """

    def __init__(self, annotation_file: Path, cache: Path, key: str, kept: NDArray[np.int64] | None = None) -> None:
        """Map the Arrow file `cache` that :func:`read_rows` makes; `kept` are positions of rows to have, None for all.

        Raises:
            Exception: The file is damaged (errors of several kinds), or of another state of the annotation file.
        """
        self.annotation_file, self.key = annotation_file, key
        self._cache, self._kept = cache, kept
        with pyarrow.ipc.open_file(pa.memory_map(str(cache)) if can_map(cache) else pa.OSFile(str(cache))) as reader:
            if (reader.schema.metadata or {}).get(b"key") != key.encode():
                raise ValueError(f"{cache} was made from another state of {annotation_file}")
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        table = pa.Table.from_batches(batches)
        # Only numbers are looked at: where each row begins and ends.
        table.validate(full=True)
        if any(len(batch) != _BATCH for batch in batches[:-1]) or table.schema.names != list(_COLUMNS):
            raise ValueError(f"{cache} is damaged")
        self._json = [batch.column("json") for batch in batches]
        self._images = table.column("image")
        numbers = {name: _to_numpy(table.column(name), name) for name in table.schema.names if name not in _BYTES}
        if kept is not None:
            numbers = {name: values[kept] for name, values in numbers.items()}
        self._numbers = numbers["number"]
        self.has_image: NDArray[np.bool_] = numbers["has_image"]
        self.turns: NDArray[np.int64] = numbers["turns"]
        self.words: NDArray[np.int64] = numbers["words"]
        self.words_without_placeholder: NDArray[np.int64] = numbers["words_without_placeholder"]
        self.special_tokens: NDArray[np.bool_] = numbers["special_tokens"]
        self.other_markers: NDArray[np.bool_] = numbers["other_markers"]
        self.question_bytes: NDArray[np.int64] = numbers["question_bytes"]
        self.answers: NDArray[np.int64] = numbers["answers"]
        self.remarks: NDArray[np.int64] = numbers["remarks"]

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """Return a row as `json.loads` gives it, or a list of rows."""
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[operator.index(index)]
        batch, offset = divmod(row if self._kept is None else int(self._kept[row]), _BATCH)
        try:
            return cast(Row, json.loads(_unpack(self._json[batch][offset].as_py())))
        except (OSError, ValueError, struct.error) as error:
            raise UserError(f"{self._cache} is damaged at row {row}: delete it, and it is made again") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.annotation_file, self._cache, self.key, self._kept)

    def images(self) -> list[str | None]:
        """Return the image path of every row, None for a row of text only; without parsing the rows.

        Half a surrogate pair, which JSON can spell, is three U+FFFD here.
        """
        column = self._images if self._kept is None else self._images.take(_to_arrow("number", self._kept))
        return [None if path is None else path.decode("utf-8", "replace") for path in column.to_pylist()]

    @property
    def sha256(self) -> str:
        """SHA-256 of the annotation file, 64 hex digits; of packed rows that of pieces, sizes and ends of the files."""
        return self.key.rpartition(":")[2]

    def row_name(self, index: int) -> str:
        """Return the name of a row in errors: its number or line in the annotation file, and its id."""
        return row_namer(self.annotation_file)(int(self._numbers[index]), self[index])

    def remark_lines(self) -> list[str]:
        """Return the remarks on rows that are trained on all the same, with the number of rows of each."""
        counts = {remark: int((self.remarks >> bit & 1).sum()) for bit, remark in enumerate(REMARKS)}
        return [f"{count:,} of {len(self):,} rows have {remark}" for remark, count in counts.items() if count]

    def select(self, positions: NDArray[np.int64]) -> "Rows":
        """Return the rows at some positions of this list."""
        kept = positions if self._kept is None else self._kept[positions]
        return Rows(self.annotation_file, self._cache, self.key, kept)


def read_rows(path: Path) -> Rows:
    """Open an annotation file: a JSON list of rows, JSON lines, or packed rows.

    Rows of other forms are kept as they are trained on: see
    :func:`cobra.preprocessing.forms.training_rows.check_rows`. Images inside stay where they are.

    The first time every row is checked and an Arrow file is made, in the folder that
    :func:`cobra.preprocessing.datasets.row_cache.load_or_build` chooses; later it is mapped. The annotation file is
    hashed each time: a copy that keeps the time of change (`rsync -t`, `cp -p`) may have other rows of the same size.
    Of packed rows pieces are hashed, and the times of change count too.

    Raises:
        UserError: The file is missing or not JSON (with the line), or a row has no conversation, an unknown or
            misplaced role, or several images or one elsewhere than under `image` (with the row's number, from 0, and
            id).
    """
    path = Path(path)
    if is_packed(path):
        sha256, times = packed_sha256(path)
        key = f"{_FORMAT}:{times}:{sha256}"
    elif path.is_file():
        key = f"{_FORMAT}:{sha256_file(path)}"
    else:
        raise UserError(f"The annotation file does not exist: {path}")
    return load_or_build(path, _ENDING, lambda cache: Rows(path, cache, key), lambda cache: _build(path, cache, key))


def _build(path: Path, cache: Path, key: str) -> None:
    schema = pa.schema(_COLUMNS).with_metadata({"key": key})
    rows = iter(track_items(check_rows(path), f"Checking {path.name}"))
    # Rows hold no circles; to look for some in all that is alive takes a quarter of the time.
    with _without_collector(), atomic_path(cache) as temporary, pyarrow.ipc.new_file(str(temporary), schema) as writer:
        for columns in _batches(rows):
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pause the collector of circular garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _batches(rows: Iterator[CheckedRow]) -> Iterator[list[pa.Array]]:
    """Yield the columns of `_BATCH` rows at a time."""
    while parts := [_columns(chunk) for _ in range(_BATCH // _CHUNK) if (chunk := list(islice(rows, _CHUNK)))]:
        columns = {name: list(chain.from_iterable(part[name] for part in parts)) for name in _COLUMNS}
        yield [(_join if name in _BYTES else _to_arrow)(name, values) for name, values in columns.items()]


def _columns(chunk: Sequence[CheckedRow]) -> dict[str, Sequence[Any]]:
    paths = [checked.row.get("image") for checked in chunk]
    texts = [[turn["value"] for turn in checked.row["conversations"]] for checked in chunk]
    whole = ["\n".join(turns) for turns in texts]
    joined = "\n".join(whole)
    words = _count_words(whole, joined)
    return {
        "json": [_pack(checked.json) for checked in chunk],
        # A path may hold half a surrogate pair, which plain UTF-8 has no bytes for.
        "image": [path and path.encode("utf-8", "surrogatepass") for path in paths],
        "number": [checked.number for checked in chunk],
        "has_image": [path is not None for path in paths],
        "turns": list(map(len, texts)),
        "words": words,
        "words_without_placeholder": words
        if PLACEHOLDER not in joined
        else [count - sum(map(_lost_words, turns)) for turns, count in zip(texts, words, strict=True)],
        "special_tokens": _find(has_special_tokens, whole, joined),
        "other_markers": _find(has_other_markers, whole, joined),
        "question_bytes": [len(turns[0].encode()) for turns in texts],
        "answers": [sum(map(has_text, turns[1::2])) for turns in texts],
        "remarks": [remarks_of(checked.row, path) for checked, path in zip(chunk, paths, strict=True)],
    }


def _find(is_found: Callable[[str], bool], texts: Sequence[str], joined: str) -> list[bool]:
    """Look in all texts at once for what few have, and then in each."""
    return list(map(is_found, texts)) if is_found(joined) else [False] * len(texts)


# pyarrow's own ways from lists and to NumPy import pandas where it is installed: 0.2 s and 55 MiB a process.


def _join(name: str, values: Sequence[bytes | None]) -> pa.Array:
    """Return a column of bytes."""
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value or b"") for value in values], out=offsets[1:])
    data = b"".join(value or b"" for value in values)
    is_there = np.packbits([value is not None for value in values], bitorder="little")
    buffers = [pa.py_buffer(buffer) for buffer in (is_there, offsets, data)]
    return pa.Array.from_buffers(_COLUMNS[name], len(values), buffers)


def _to_arrow(name: str, values: Sequence[int] | NDArray[np.int64]) -> pa.Array:
    """Return a column of numbers or flags."""
    numbers = np.ascontiguousarray(values, _dtype(name))
    return pa.Array.from_buffers(_COLUMNS[name], len(numbers), [None, pa.py_buffer(numbers)])


def _to_numpy(column: pa.ChunkedArray, name: str) -> NDArray[Any]:
    empty = np.empty(0, _dtype(name))
    chunks = [
        np.frombuffer(chunk.buffers()[1], empty.dtype, len(chunk), chunk.offset * empty.itemsize)
        for chunk in column.chunks
    ]
    numbers = np.concatenate([empty, *chunks])
    # Of a damaged file a flag may be neither 0 nor 1.
    return numbers.astype(np.bool_) if name in _FLAGS else numbers


def _dtype(name: str) -> type[np.generic]:
    return np.uint8 if name in _FLAGS else np.int64


def _pack(content: bytes) -> bytes:
    packed: bytes = _CODEC.compress(content, asbytes=True)
    return _HEAD.pack(len(content), zlib.crc32(content)) + packed


def _unpack(packed: bytes) -> bytes:
    """Return what was packed; a ValueError, OSError or struct.error where it is damaged."""
    size, checksum = _HEAD.unpack_from(packed)
    if size > MAX_ROW_BYTES:
        raise ValueError(f"a row of {size:,} bytes")
    content: bytes = _CODEC.decompress(packed[_HEAD.size :], size, asbytes=True)
    if zlib.crc32(content) != checksum:
        raise ValueError("another checksum")
    return content


def _count_words(texts: Sequence[str], joined: str) -> list[int]:
    """Return the words of each text, as `str.split` finds them; `joined` is all of them, with a line end between two.

    Beginnings of words are looked for in the bytes of all texts at once, five times as fast as by splitting; where one
    has other characters than ASCII, which has white space of its own, texts are split.
    """
    if not joined.isascii():
        return [len(text.split()) for text in texts]
    is_space = np.frombuffer(f"{joined}\n".encode().translate(_SPACES), np.bool_)
    begins = ~is_space
    begins[1:] &= is_space[:-1]
    starts = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
    counts: list[int] = np.add.reduceat(begins, starts, dtype=np.int64).tolist()
    return counts


def _lost_words(text: str) -> int:
    """Return how many words fewer a text has without its placeholders."""
    return len(text.split()) - len(text.replace(PLACEHOLDER, "").split())
