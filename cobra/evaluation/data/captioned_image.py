"""Images with human captions, and the checks and errors that all readers of their files share."""

import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cobra.preprocessing.archives import unsafe_name
from cobra.util.errors import UserError
from cobra.util.files import write_text
from cobra.util.printable import printable

ImageId = int | str

FETCH_COMMAND = "python scripts/preprocess.py --dataset_id coco-captions --root_dir data"
"""Command that downloads COCO's own captions and images."""

# A photo of COCO has the same number under its names of 2014 and of 2017.
_PHOTO = re.compile(
    r"(?:.*/)?(?:COCO_(?:train|val|test)201[45]_)?(?P<number>[0-9]{12})\.jpe?g"
    r"|(?:.*/)?COCO_(?:train|val|test)201[45]_(?P<stem>[0-9]{12})|(?P<digits>[0-9]{1,18})",
    re.IGNORECASE,
)

# How many ids or names an error lists, and characters of a value in it.
_SHOWN = 5
_CHARACTERS = 80
# A value may be as large or as deep as a file.
_REPR = reprlib.Repr()
_REPR.maxlevel = 4
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _CHARACTERS


@dataclass(frozen=True)
class CaptionedImage:
    """An image and the human captions that answers are compared with."""

    image_id: ImageId
    file_name: str
    """Path below the image folder, `/` between folders; it leads nowhere else."""
    references: tuple[str, ...]
    question: str | None = None
    """Question about this image alone; None where the protocol's prompt is asked about all images."""


def id_of(entry: Any, key: str, where: str) -> ImageId:
    """Return the id of an entry, which errors call `where`; a whole number that a table has made `42.0` is 42.

    Raises:
        UserError: It is no object, or its id is neither a whole number nor text.
    """
    value = _value(entry, key, where)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where} has the `{key}` {shortened(value)}; a whole number or a text was expected")
    return value


def text_of(entry: Any, key: str, where: str) -> str:
    """Return a text of an entry.

    Raises:
        UserError: It is no object, or has no text there.
    """
    value = _value(entry, key, where)
    if not isinstance(value, str):
        raise UserError(f"{where} has the `{key}` {shortened(value)}; a text was expected")
    return whole_text(value)


def _value(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {shortened(entry)}; an object with `{key}` was expected")
    if key not in entry:
        keys = ", ".join(f"`{printable(str(name), _CHARACTERS)}`" for name in list(entry)[:_SHOWN])
        raise UserError(f"{where} has no `{key}`; it has {keys or 'nothing'}")
    return entry[key]


def photo_number(image_id: ImageId) -> int | None:
    """Return the number of an image: an id that is one or spells one, or COCO's number in the file name of a photo.

    `42`, `"42"`, `"000000000042.jpg"` and `"val2014/COCO_val2014_000000000042.jpg"` have the number 42; any other text
    has none.
    """
    if isinstance(image_id, int):
        return image_id
    match = _PHOTO.fullmatch(image_id)
    return int(match[match.lastgroup]) if match and match.lastgroup else None


def whole_text(text: str) -> str:
    """Return a text with a question mark for each lone surrogate, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def check_file_name(name: str, where: str) -> None:
    """Raise a UserError where a file name leads out of the image folder."""
    if problem := unsafe_name(name):
        raise UserError(f"{where}: the file name {shortened(name)} {problem}")


def shortened(value: Any) -> str:
    """Return a value as Python writes it, cut to a length that fits a message."""
    text = _REPR.repr(value)
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 3]}..."


def count_images(number: int) -> str:
    """Return `1 image`, `5,000 images`."""
    return f"{number:,} image{'' if number == 1 else 's'}"


def first_names(names: Sequence[ImageId]) -> str:
    """Return the first few ids or names as a person may be shown them, `1, 2, ...`."""
    return ", ".join(printable(str(name), _CHARACTERS) for name in names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


def refuse_images(names: Sequence[ImageId], problem: str, remedy: str, list_file: Path | None = None) -> None:
    """Raise a UserError that counts ids or names of images and has the first few, if there are any.

    Args:
        names: The ids or names.
        problem: Beginning of the message, up to their number, e.g. `x.json has no caption for`.
        remedy: The closing sentence.
        list_file: Written, with all of them, one a line, where they are more than the error names.
    """
    if not names:
        return
    listed = ""
    if len(names) > _SHOWN and list_file is not None:
        write_text(list_file, "".join(f"{printable(str(name))}\n" for name in names))
        listed = f" {list_file} lists them all."
    raise UserError(f"{problem} {count_images(len(names))}: {first_names(names)}.{listed} {remedy}")
