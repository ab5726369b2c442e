"""The `.metadata` of a run's state, read without running anything: a pickle taken apart as the plain data that it is.

torch.distributed.checkpoint unpickles that file, and a pickle may call any function. Here its instructions are followed
over lists and names alone: what would be called becomes a record of its name and arguments, and from the records that
are expected, torch's own objects are made.
"""

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

METADATA = ".metadata"

# 3B parameters on 1,000 processes have about 100 MB.
_MOST_BYTES = 1 << 28
_METADATA = "torch.distributed.checkpoint.metadata "
_DATA_FILE = re.compile(r"__[0-9]{1,6}_[0-9]{1,6}\.distcp")
_DTYPES = {
    f"torch {name}": getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64", "int64", "int32")
}


@dataclass(eq=False)
class _Record:
    """Record of a call that a pickle asks for."""

    name: str
    """Module and name of what would be called."""
    arguments: Any = ()
    state: Any = None


@dataclass(eq=False)
class _Pairs:
    """A dictionary; nothing is hashed, as a key may be anything."""

    items: list[tuple[Any, Any]] = field(default_factory=list)


def read_metadata(folder: Path) -> Metadata:
    """Read what a state says of its tensors, and check that its files can hold them.

    Args:
        folder: The state: `.metadata` and the `.distcp` files beside it.

    Returns:
        Sizes, dtypes and places of the tensors; without what only torch's writer needs.

    Raises:
        OSError: A file is missing.
        ValueError: The file is damaged, or says anything else than a state's does.
    """
    path = folder / METADATA
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"its {METADATA} has more than {_MOST_BYTES:,} bytes")
    try:
        values = _attributes(_taken_apart(path.read_bytes()), _METADATA + "Metadata")
        tensors = {_text(name): _entry(value) for name, value in _pairs(values["state_dict_metadata"])}
        places = dict(_place(key, value) for key, value in _pairs(values["storage_data"]))
    # The instructions of a damaged file find the wrong things on the stack, or none.
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeError) as error:
        raise ValueError(f"its {METADATA} is damaged ({type(error).__name__}: {error})") from error
    sizes: dict[str, int] = {}
    for place in places.values():
        name = place.relative_path
        size = sizes[name] if name in sizes else sizes.setdefault(name, (folder / name).stat().st_size)
        if not (folder / name).is_file() or place.offset + place.length > size:
            raise ValueError(f"its {METADATA} says that {name} holds more than it does")
    return Metadata(state_dict_metadata=tensors, storage_data=places)


def _entry(value: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if isinstance(value, _Record) and value.name == _METADATA + "BytesStorageMetadata":
        return BytesStorageMetadata()
    values = _attributes(value, _METADATA + "TensorStorageMetadata")
    dtype = _record(values["properties"], _METADATA + "TensorProperties").state[0]
    if not isinstance(dtype, _Record) or dtype.name not in _DTYPES:
        raise ValueError(f"its {METADATA} holds a tensor of a dtype that no state has")
    size = _size(values["size"])
    chunks = [_attributes(chunk, _METADATA + "ChunkStorageMetadata") for chunk in values["chunks"]]
    parts = [ChunkStorageMetadata(_size(chunk["offsets"]), _size(chunk["sizes"])) for chunk in chunks]
    inside = all(
        len(part.offsets) == len(part.sizes) == len(size)
        and all(start + length <= end for start, length, end in zip(part.offsets, part.sizes, size, strict=True))
        for part in parts
    )
    if not inside or sum(math.prod(part.sizes) for part in parts) != math.prod(size):
        raise ValueError(f"its {METADATA} holds a tensor whose parts do not make up the whole")
    return TensorStorageMetadata(TensorProperties(dtype=_DTYPES[dtype.name]), size, parts)


def _place(key: Any, value: Any) -> tuple[MetadataIndex, _StorageInfo]:
    index = _attributes(key, _METADATA + "MetadataIndex")
    place = _attributes(value, "torch.distributed.checkpoint.filesystem _StorageInfo")
    offset = None if index.get("offset") is None else _size(index["offset"])
    hint = None if index.get("index") is None else _number(index["index"])
    name = _text(place["relative_path"])
    if not _DATA_FILE.fullmatch(name):
        raise ValueError(f"its {METADATA} names the file {name[:80]!r}, which is none of a state's")
    if place.keys() - {"relative_path", "offset", "length"}:
        raise ValueError(f"its {METADATA} asks for a transformation of {name}, which no state of this program has")
    return (
        MetadataIndex(_text(index["fqn"]), offset, hint),
        _StorageInfo(name, _number(place["offset"]), _number(place["length"])),
    )


def _record(value: Any, name: str) -> _Record:
    if not isinstance(value, _Record) or value.name != name:
        found = value.name if isinstance(value, _Record) else f"a {type(value).__name__}"
        raise ValueError(f"its {METADATA} holds {found[:80]!r} where {name!r} was expected; nothing of it was run")
    return value


def _attributes(value: Any, name: str) -> dict[str, Any]:
    return {_text(key): item for key, item in _pairs(_record(value, name).state)}


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if not isinstance(value, _Pairs):
        raise TypeError(f"a {type(value).__name__} in place of a dictionary")
    return value.items


def _size(value: Any) -> torch.Size:
    arguments = _record(value, "torch Size").arguments
    if len(arguments) != 1 or not isinstance(arguments[0], tuple | list):
        raise TypeError("a size that is none")
    return torch.Size([_number(number) for number in arguments[0]])


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        # Only a number is shown: what is nested in itself may have a text without end.
        found = f"{value:,}" if type(value) is int else f"a {type(value).__name__}"
        raise ValueError(f"its {METADATA} holds {found} where a size or an offset was expected")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} in place of a name")
    return value


class _Machine:
    """Follows the instructions of a pickle that makes dictionaries, lists, tuples, numbers, texts and records."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps: dict[str, Callable[[Any], None]] = {
            "MARK": self._mark,
            "MEMOIZE": lambda _: self._remember(len(self._memo)),
            "BINPUT": self._remember,
            "LONG_BINPUT": self._remember,
            "BINGET": lambda place: self.stack.append(self._memo[place]),
            "LONG_BINGET": lambda place: self.stack.append(self._memo[place]),
            "NONE": lambda _: self.stack.append(None),
            "NEWTRUE": lambda _: self.stack.append(True),
            "NEWFALSE": lambda _: self.stack.append(False),
            "EMPTY_DICT": lambda _: self.stack.append(_Pairs()),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "TUPLE": lambda _: self._tuple_since_mark(),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "APPEND": lambda _: self._append([self.stack.pop()]),
            "APPENDS": lambda _: self._append(self._since_mark()),
            "SETITEM": lambda _: self._set([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda _: self._set(self._since_mark()),
            "GLOBAL": lambda name: self.stack.append(_Record(name)),
            "STACK_GLOBAL": lambda _: self._name(),
            "REDUCE": lambda _: self._call(),
            "NEWOBJ": lambda _: self._call(),
            "BUILD": lambda _: self._build(),
        }
        values = "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE"
        self._steps |= dict.fromkeys(values.split(), lambda value: self.stack.append(value))
        self._steps |= dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _: None)

    def follow(self, instruction: str, argument: Any) -> None:
        if instruction not in self._steps:
            raise ValueError(f"the instruction {instruction}, which no state's has")
        self._steps[instruction](argument)

    def _mark(self, _: Any) -> None:
        # Nothing is copied: a hostile file may have a mark in every byte.
        self._marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self._marks.pop()
        return values

    def _tuple_since_mark(self) -> None:
        values = tuple(self._since_mark())
        self.stack.append(values)

    def _remember(self, place: int) -> None:
        self._memo[place] = self.stack[-1]

    def _tuple(self, size: int) -> None:
        values = tuple(self.stack[-size:])
        del self.stack[-size:]
        self.stack.append(values)

    def _append(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError(f"a {type(self.stack[-1]).__name__} in place of a list")
        self.stack[-1].extend(values)

    def _set(self, values: list[Any]) -> None:
        _pairs(self.stack[-1]).extend(zip(values[::2], values[1::2], strict=True))

    def _name(self) -> None:
        module, name = self.stack[-2:]
        del self.stack[-2:]
        self.stack.append(_Record(f"{_text(module)} {_text(name)}"))

    def _call(self) -> None:
        arguments = self.stack.pop()
        called = self.stack.pop()
        self.stack.append(_Record(called.name, arguments))

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Record):
            raise TypeError(f"a {type(self.stack[-1]).__name__} in place of an object")
        self.stack[-1].state = state


def _taken_apart(content: bytes) -> Any:
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(content):
            machine.follow(instruction.name, argument)
    except ValueError as error:
        raise ValueError(f"its {METADATA} is damaged, or no state's ({error})") from error
    return machine.stack[-1]
