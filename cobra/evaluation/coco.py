"""Images with the captions of people, and COCO's own form of them: an annotation file beside a folder of images."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cobra.evaluation.entries import FETCH_COMMAND, CaptionedImage, ImageId, check_file_name, id_and_text, refuse
from cobra.util.errors import UserError
from cobra.util.files import read_json

# What download_extract("coco-captions") leaves.
DEFAULT_ANNOTATIONS = Path("data/download/coco-captions/annotations/captions_val2017.json")
DEFAULT_IMAGE_DIR = Path("data/download/coco-captions/val2017")


def read_captions(annotations: Path) -> list[CaptionedImage]:
    """Read a caption annotation file in COCO's form: `images` (id, file_name) and `annotations` (image_id, caption).

    Returns:
        The images in the file's order, each with its captions in the file's order.

    Raises:
        UserError: The file is missing, is not JSON (with the line), or as of :func:`parse_captions`.
    """
    content = read_json(annotations, "the annotation file", f"COCO's own comes with: {FETCH_COMMAND}")
    return parse_captions(content, annotations)


def parse_captions(content: Any, annotations: Path) -> list[CaptionedImage]:
    """Take the images and captions out of what :func:`read_captions` has read.

    Args:
        content: Of the file.
        annotations: Names the file in errors.

    Raises:
        UserError: It is not of COCO's form, an image has no caption or is there twice, a caption belongs to no image,
            or a file name leads out of the image folder.
    """
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations")
    ):
        raise UserError(f"{annotations} is not a COCO caption file: it has no lists `images` and `annotations`")
    if any(_is_object(entry) for entry in content["annotations"][:1]):
        raise UserError(
            f"{annotations} holds objects, not captions: it is an instances file. COCO's captions of the same images "
            "are in the file captions_*.json beside it."
        )
    names = _file_names(content["images"], annotations)
    captions: dict[ImageId, list[str]] = {image_id: [] for image_id in names}
    for number, entry in enumerate(content["annotations"]):
        where = f"{annotations}: annotations[{number}]"
        image_id, caption = id_and_text(entry, "image_id", "caption", where)
        if image_id not in captions:
            raise UserError(f"{where}: the caption belongs to the image {image_id!r}, which `images` does not list")
        captions[image_id].append(caption)
    bare = [image_id for image_id in names if not captions[image_id]]
    refuse(bare, f"{annotations} has no caption for", "Take them out of `images`, or add captions.")
    return [CaptionedImage(image_id, name, tuple(captions[image_id])) for image_id, name in names.items()]


def _is_object(entry: Any) -> bool:
    return isinstance(entry, dict) and "category_id" in entry and "caption" not in entry


def _file_names(entries: list[Any], annotations: Path) -> dict[ImageId, str]:
    names: dict[ImageId, str] = {}
    for number, entry in enumerate(entries):
        where = f"{annotations}: images[{number}]"
        image_id, name = id_and_text(entry, "id", "file_name", where)
        check_file_name(name, where)
        if image_id in names:
            raise UserError(f"{where}: the id {image_id!r} was there before")
        names[image_id] = name
    if not names:
        raise UserError(f"{annotations} lists no images")
    return names


def sample(images: Sequence[CaptionedImage], count: int | None, seed: int) -> list[CaptionedImage]:
    """Return `count` images drawn without replacement, in their own order; all where `count` is None or not smaller."""
    if count is None or count >= len(images):
        return list(images)
    chosen = sorted(random.Random(seed).sample(range(len(images)), count))
    return [images[index] for index in chosen]
