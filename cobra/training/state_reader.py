"""A run's state read back without running anything in it: only tensors and plain values, with checksums compared.

torch.distributed.checkpoint unpickles `.metadata`, and a pickle may call any function. Here what would be called
becomes a record of its name and arguments, and from the records that are expected, torch's own objects are made.
"""

import io
import math
import pickle
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, Metadata
from torch.distributed.checkpoint._traverse import get_element, set_element
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem

from cobra.models.integrity import check_archive

METADATA = ".metadata"

# 3B parameters on 1,000 processes have about 100 MB.
_MOST_BYTES = 1 << 28
_METADATA = "torch.distributed.checkpoint.metadata "
_DATA_FILE = re.compile(r"__[0-9]{1,6}_[0-9]{1,6}\.distcp")
_DTYPES = {
    f"torch {name}": getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64", "int64", "int32")
}
# All that a pickle needs to make dictionaries, lists, tuples, numbers, texts and records.
_INSTRUCTIONS = (
    "PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 "
    "LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS "
    "SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD"
)


class StateReader(dcp.FileSystemReader):
    """Reads the tensors of a state."""

    def __init__(self, path: Path) -> None:
        """Read and check `.metadata`; see :func:`read_metadata`."""
        super().__init__(path)
        self._metadata = read_metadata(path)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return what was read at the start; there is no other file to fall back to."""
        return self._metadata

    def _slice_file(self, file: IO[bytes], sinfo: Any) -> IO[bytes]:
        # Each tensor is an archive of its own, with checksums that torch writes and does not compare. It is read once,
        # into memory: the view that torch would read from cannot seek from its end.
        part = io.BytesIO(super()._slice_file(file, sinfo).read(sinfo.length))
        check_archive(part, f"{sinfo.relative_path}, {sinfo.length:,} bytes from {sinfo.offset:,}")
        part.seek(0)
        return part


class StatePlanner(DefaultLoadPlanner):
    """Puts what is read into place; torch's own planner unpickles all that is no tensor."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a value that is no tensor into place, of the kind that is there."""
        name = read_item.dest_index.fqn
        path = self.mappings[name]
        loaded, expected = torch.load(value, weights_only=True), get_element(self.original_state_dict, path)
        if _kind(loaded) != _kind(expected):
            raise ValueError(f"its {name} is a {type(loaded).__name__} where a {type(expected).__name__} was expected")
        set_element(self.original_state_dict, path, loaded)


def _kind(value: Any) -> Any:
    """Return a value's type, and of tuples and lists those of its items too; numbers are of one kind."""
    if isinstance(value, list | tuple):
        return type(value), [_kind(item) for item in value]
    return float if type(value) is int else type(value)


def read_metadata(folder: Path) -> Metadata:
    """Read what a state says of its tensors, and check that its `.distcp` files can hold them.

    Returns:
        Sizes, dtypes and places of the tensors; without what only torch's writer needs.

    Raises:
        OSError: A file is missing.
        ValueError: `.metadata` is damaged, or says anything else than a state's does.
    """
    path = folder / METADATA
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"its {METADATA} has more than {_MOST_BYTES:,} bytes")
    try:
        values = _attributes(_Unpickler(io.BytesIO(path.read_bytes())).load(), _METADATA + "Metadata")
        tensors = {_text(name): _entry(value) for name, value in _pairs(values["state_dict_metadata"])}
        places = dict(_place(key, value) for key, value in _pairs(values["storage_data"]))
    except ValueError as error:
        raise ValueError(f"its {METADATA} is damaged, or no state's: {error}") from error
    # The instructions of a damaged file find the wrong things on the stack, or none.
    except (LookupError, TypeError, AttributeError, EOFError, struct.error, pickle.UnpicklingError) as error:
        raise ValueError(f"its {METADATA} is damaged ({type(error).__name__}: {error})") from error
    sizes = {name: (folder / name).stat().st_size for name in {place.relative_path for place in places.values()}}
    for place in places.values():
        name = place.relative_path
        if not (folder / name).is_file() or place.offset + place.length > sizes[name]:
            raise ValueError(f"its {METADATA} says that {name} holds more than it does")
    return Metadata(state_dict_metadata=tensors, storage_data=places)


@dataclass(eq=False)
class _Record:
    """A function or class that a pickle names, or the call of one that it asks for."""

    name: str
    arguments: Any = ()
    state: Any = None

    def __call__(self, *arguments: Any) -> "_Record":
        return _Record(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Pairs:
    """A dictionary; nothing is hashed, as a key may be anything."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs.append((key, value))


class _Unpickler(pickle._Unpickler):
    """Python's own reader of pickles, kept to plain data: it knows few instructions, and a name is only a record."""

    dispatch = {
        code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _INSTRUCTIONS.split())
    } | {
        pickle.NEWOBJ[0]: pickle._Unpickler.dispatch[pickle.REDUCE[0]],
        pickle.EMPTY_DICT[0]: lambda unpickler: unpickler.append(_Pairs()),
    }

    def find_class(self, module: str, name: str) -> Any:
        return _Record(f"{module} {name}")


def _entry(value: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if isinstance(value, _Record) and value.name == _METADATA + "BytesStorageMetadata":
        return BytesStorageMetadata()
    values = _attributes(value, _METADATA + "TensorStorageMetadata")
    dtype = _record(values["properties"], _METADATA + "TensorProperties").state[0]
    if not isinstance(dtype, _Record) or dtype.name not in _DTYPES:
        raise ValueError("it holds a tensor of a dtype that no state has")
    size = _size(values["size"])
    chunks = [_attributes(chunk, _METADATA + "ChunkStorageMetadata") for chunk in values["chunks"]]
    parts = [ChunkStorageMetadata(_size(chunk["offsets"]), _size(chunk["sizes"])) for chunk in chunks]
    inside = all(
        len(part.offsets) == len(part.sizes) == len(size)
        and all(start + length <= end for start, length, end in zip(part.offsets, part.sizes, size, strict=True))
        for part in parts
    )
    if not inside or sum(math.prod(part.sizes) for part in parts) != math.prod(size):
        raise ValueError("it holds a tensor whose parts do not make up the whole")
    return TensorStorageMetadata(TensorProperties(dtype=_DTYPES[dtype.name]), size, parts)


def _place(key: Any, value: Any) -> tuple[MetadataIndex, _StorageInfo]:
    index = _attributes(key, _METADATA + "MetadataIndex")
    place = _attributes(value, "torch.distributed.checkpoint.filesystem _StorageInfo")
    offset = None if index.get("offset") is None else _size(index["offset"])
    hint = None if index.get("index") is None else _number(index["index"])
    name = _text(place["relative_path"])
    if not _DATA_FILE.fullmatch(name):
        raise ValueError(f"it names the file {name[:80]!r}, which is none of a state's")
    if place.keys() - {"relative_path", "offset", "length"}:
        raise ValueError(f"it asks for a transformation of {name}, which no state of this program has")
    info = _StorageInfo(name, _number(place["offset"]), _number(place["length"]))
    return MetadataIndex(_text(index["fqn"]), offset, hint), info


def _record(value: Any, name: str) -> _Record:
    if not isinstance(value, _Record) or value.name != name:
        got = value.name if isinstance(value, _Record) else f"a {type(value).__name__}"
        raise ValueError(f"it holds {got[:80]!r} where {name!r} was expected; nothing of it was run")
    return value


def _attributes(value: Any, name: str) -> dict[str, Any]:
    return {_text(key): item for key, item in _pairs(_record(value, name).state)}


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if not isinstance(value, _Pairs):
        raise TypeError(f"a {type(value).__name__} in place of a dictionary")
    return value.pairs


def _size(value: Any) -> torch.Size:
    arguments = _record(value, "torch Size").arguments
    if len(arguments) != 1 or not isinstance(arguments[0], tuple | list):
        raise TypeError("a size that is none")
    return torch.Size([_number(number) for number in arguments[0]])


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        # Only a number is shown: what is nested in itself may have a text without end.
        got = f"{value:,}" if type(value) is int else f"a {type(value).__name__}"
        raise ValueError(f"it holds {got} where a size or an offset was expected")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} in place of a name")
    return value
