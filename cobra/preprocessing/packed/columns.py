"""Columns of packed rows: those with images inside, those that are read as the row, and a row made of both."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from cobra.preprocessing.datasets.other_forms import IMAGE_COLUMNS
from cobra.preprocessing.datasets.row_keys import Row, spelled
from cobra.util.errors import UserError

TURN_COLUMNS = ("conversations", "messages", "prompt", "completion")
BYTES, PATH = "bytes", "path"
_DRIVE = re.compile(r"[A-Za-z]:")
_INSIDE = re.compile(r"#([0-9]{1,18})\Z")


@dataclass(frozen=True)
class PictureColumn:
    """A column of encoded images: `datasets`' struct of bytes and path, plain bytes, or lists of them."""

    name: str
    is_list: bool
    has_path: bool
    """True of structs with a path beside the bytes; images may also be files that it names."""


@dataclass(frozen=True)
class Columns:
    """Columns of a file, sorted."""

    pictures: tuple[PictureColumn, ...]
    values: tuple[str, ...]
    """Columns that are read as they are."""


def sort_columns(schema: pa.Schema, path: Path) -> Columns:
    """Sort the columns of a file; those with bytes that are no images are left out.

    Raises:
        UserError: Turns hold bytes.
    """
    pictures, values = [], []
    for field in schema:
        is_list = _is_list(field.type)
        item = field.type.value_type if is_list else field.type
        if pa.types.is_struct(item) and BYTES in {part.name for part in item} and _is_binary(item.field(BYTES).type):
            pictures.append(PictureColumn(field.name, is_list, PATH in {part.name for part in item}))
        elif _is_binary(item) and spelled(field.name) in IMAGE_COLUMNS:
            pictures.append(PictureColumn(field.name, is_list, False))
        elif not _holds_bytes(field.type):
            values.append(field.name)
        elif field.name in TURN_COLUMNS:
            raise UserError(
                f"{path} has bytes within the column {field.name}: put images into a column of their own, `images`"
            )
    return Columns(tuple(pictures), tuple(values))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _holds_bytes(kind: pa.DataType) -> bool:
    if _is_list(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_holds_bytes(part.type) for part in kind)
    return _is_binary(kind) or bool(pa.types.is_fixed_size_binary(kind))


def image_items(value: Any) -> list[Any]:
    """Return the images of a picture column's value, of which there may be none."""
    return [item for item in (value if isinstance(value, list) else [value]) if item is not None]


def make_row(values: Row, images: Sequence[str]) -> Row:
    """Return the row of a record's values and the paths of its images, as JSON has it.

    Tables have a place for every key: those without a value are left out. Turns may be a struct of lists, as `datasets`
    stored a list of structs, or JSON text.
    """
    row = {key: plain for key, value in values.items() if (plain := _plain(value)) is not None}
    for key in TURN_COLUMNS[:2]:
        if key in row:
            row[key] = _turns(row[key])
    if not images:
        return row
    return row | ({"image": images[0]} if len(images) == 1 else {"images": list(images)})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): plain for key, part in value.items() if (plain := _plain(part)) is not None}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    # Dates, decimals and the like are kept as their text.
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _turns(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        return [dict(zip(value, turn, strict=False)) for turn in zip(*value.values(), strict=False)]
    return value


def reference(path: Any, number: int) -> str:
    """Return the path that stands in a row for an image inside: its own, if it has one, `#` and the row's number.

    Its folders, which name the source of a row, are kept where they lead nowhere else.
    """
    parts = PurePosixPath((path if isinstance(path, str) else "").replace("\\", "/"))
    leads_out = parts.is_absolute() or ".." in parts.parts or _DRIVE.match(str(parts)) is not None
    shown = parts.name if leads_out else str(parts).removeprefix(".")
    return f"{shown}#{number}"


def referred_row(image: str) -> int | None:
    """Return the number of the row that an image's path stands for; None where it is that of a file."""
    match = _INSIDE.search(image)
    return None if match is None else int(match[1])
