"""Images with the captions of people, and what the readers of their files have in common: checks, and errors."""

import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cobra.preprocessing.archives import unsafe_name
from cobra.util.errors import UserError
from cobra.util.files import write_text
from cobra.util.shown import shown

ImageId = int | str

FETCH_COMMAND = "python scripts/preprocess.py --dataset_id coco-captions --root_dir data"
"""What fetches COCO's own captions and images."""

# A photo of COCO has the same number under its names of 2014 and of 2017.
_PHOTO = re.compile(r"(?:.*/)?(?:COCO_(?:train|val|test)201[45]_)?(?P<number>[0-9]{12})\.jpe?g|(?P<digits>[0-9]{1,18})")

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
    """What is asked about this image alone; None where all are asked the protocol's prompt."""


def id_and_text(entry: Any, id_key: str, text_key: str, where: str) -> tuple[ImageId, str]:
    """Return the id and the text of an entry, checked for their types.

    Args:
        entry: A value out of a JSON file.
        id_key: Key of the id, a number or text.
        text_key: Key of the text.
        where: Names the entry in the error.

    Raises:
        UserError: It is no object, or lacks one of the two.
    """
    image_id, text = (entry.get(id_key), entry.get(text_key)) if isinstance(entry, dict) else (None, None)
    if isinstance(image_id, bool) or not isinstance(image_id, int | str) or not isinstance(text, str):
        raise UserError(
            f"{where} is {shortened(entry)}, and an object with `{id_key}` (a number or text) and `{text_key}` (text) "
            "was expected"
        )
    return image_id, whole_text(text)


def photo_number(image_id: ImageId) -> int | None:
    """Return the number of an image: an id that is one or spells one, or COCO's number in the file name of a photo.

    `42`, `"42"`, `"000000000042.jpg"` and `"val2014/COCO_val2014_000000000042.jpg"` have the number 42; any other text
    has none.
    """
    if isinstance(image_id, int):
        return image_id
    found = _PHOTO.fullmatch(image_id)
    return None if found is None else int(found["number"] or found["digits"])


def match_ids(found: Iterable[ImageId], known: Iterable[ImageId]) -> dict[ImageId, ImageId]:
    """Return the known id of every id found that has one: itself, or the only one of the same number."""
    known = set(known)
    by_number: dict[int, list[ImageId]] = {}
    for image_id in known:
        number = photo_number(image_id)
        if number is not None:
            by_number.setdefault(number, []).append(image_id)
    matched: dict[ImageId, ImageId] = {}
    for image_id in found:
        number = photo_number(image_id)
        same = [] if number is None else by_number.get(number, [])
        if image_id in known:
            matched[image_id] = image_id
        elif len(same) == 1:
            matched[image_id] = same[0]
    return matched


def whole_text(text: str) -> str:
    """Return a text with a question mark for each lone surrogate, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def check_file_name(name: str, where: str) -> None:
    """Refuse a file name that leads out of the image folder.

    Raises:
        UserError: It does.
    """
    problem = unsafe_name(name)
    if problem:
        raise UserError(f"{where}: the file name {shortened(name)} {problem}")


def shortened(value: Any) -> str:
    """Return a value as Python writes it, cut to a length that fits a message."""
    text = _REPR.repr(value)
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 3]}..."


def count_images(number: int) -> str:
    """Return `1 image`, `5,000 images`."""
    return f"{number:,} image{'' if number == 1 else 's'}"


def refuse(found: Sequence[ImageId], problem: str, remedy: str, list_file: Path | None = None) -> None:
    """Raise a UserError that counts what was found and names the first few, if anything was.

    Args:
        found: Ids or names of images.
        problem: What is wrong with them, up to their number, e.g. `x.json has no caption for`.
        remedy: The closing sentence.
        list_file: Written, with all of them, one a line, where they are more than the error names.
    """
    if not found:
        return
    names = ", ".join(shown(str(name), _CHARACTERS) for name in found[:_SHOWN])
    listed = ""
    if len(found) > _SHOWN:
        names += ", ..."
        if list_file is not None:
            write_text(list_file, "".join(f"{shown(str(name))}\n" for name in found))
            listed = f" {list_file} lists them all."
    raise UserError(f"{problem} {count_images(len(found))}: {names}.{listed} {remedy}")
