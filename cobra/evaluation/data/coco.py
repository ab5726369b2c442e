"""Reader of COCO's caption annotations: a JSON file beside a folder of images."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from cobra.evaluation.data.captioned_image import (
    CaptionedImage,
    ImageId,
    check_file_name,
    count_images,
    id_of,
    refuse_images,
    shortened,
    text_of,
)
from cobra.evaluation.data.image_index import ImageIndex, ImageNames, KnownImages
from cobra.preprocessing.archives import unsafe_name
from cobra.util.errors import UserError

Item = TypeVar("Item")

# What download_extract("coco-captions") leaves.
DEFAULT_ANNOTATIONS = Path("data/download/coco-captions/annotations/captions_val2017.json")
DEFAULT_IMAGE_DIR = Path("data/download/coco-captions/val2017")


def parse_captions(content: Any, annotations: Path) -> tuple[list[CaptionedImage], KnownImages, tuple[str, ...]]:
    """Take the images and captions out of what was read of the file `annotations`.

    Images without a caption, and captions of images that the file does not list, as remain where somebody cut one of
    the lists, are left out; the remarks say so.

    Returns:
        Images with captions, in the file's order; the names of all that it lists; remarks.

    Raises:
        UserError: It is not of COCO's form, an image is there twice, a file name leads out of the image folder, or no
            image has a caption.
    """
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise UserError(f"{annotations} is not a COCO caption file: it has no lists `images` and `annotations`")
    first = next(iter(content["annotations"]), None)
    if isinstance(first, dict) and "category_id" in first and "caption" not in first:
        raise UserError(
            f"{annotations} holds objects, not captions: it is an instances file. COCO's captions of the same images "
            "are in the file captions_*.json beside it."
        )
    names = read_names(content["images"], annotations)
    index = ImageIndex(names)
    captions: dict[ImageId, list[str]] = {image_id: [] for image_id in names}
    orphans: list[ImageId] = []
    for number, entry in enumerate(content["annotations"]):
        where = f"{annotations}: annotations[{number}]"
        image_id, caption = id_of(entry, "image_id", where), text_of(entry, "caption", where)
        known = index.by_id(image_id)
        if known is None:
            orphans.append(image_id)
        else:
            captions[known].append(caption)
    bare = [image_id for image_id in names if not captions[image_id]]
    if len(bare) == len(names):
        first = f"; the first caption is of the image {shortened(orphans[0])}" if orphans else ""
        refuse_images(bare, f"{annotations} has no caption for", f"That is every image that it lists{first}.")
    images = [
        CaptionedImage(image_id, named.file_name or f"image {image_id}, without a file name", tuple(captions[image_id]))
        for image_id, named in names.items()
        if captions[image_id]
    ]
    remarks = []
    if bare:
        remarks.append(f"{count_images(len(bare))} of {annotations} have no caption and are left out.")
    if orphans:
        of = f"{annotations} belong to {count_images(len(set(orphans)))} that it does not list"
        remarks.append(f"{len(orphans):,} captions of {of} and are left out.")
    return images, names, tuple(remarks)


def read_names(entries: list[Any], annotations: Path) -> dict[ImageId, ImageNames]:
    """Return what the entries of `images` are called; a file name that is missing is taken from `coco_url`.

    Raises:
        UserError: There is none, one has no id, is there twice, or has a file name that leads out of the image folder.
    """
    names: dict[ImageId, ImageNames] = {}
    for number, entry in enumerate(entries):
        where = f"{annotations}: images[{number}]"
        image_id = id_of(entry, "id", where)
        name = entry.get("file_name")
        if name is not None:
            name = text_of(entry, "file_name", where)
            check_file_name(name, where)
        elif isinstance(url := entry.get("coco_url"), str):
            name = url.rpartition("/")[2]
            name = None if unsafe_name(name) else name
        if image_id in names:
            raise UserError(f"{where}: the id {shortened(image_id)} was there before")
        names[image_id] = ImageNames(name)
    if not names:
        raise UserError(f"{annotations} lists no images")
    return names


def sample(items: Sequence[Item], count: int | None, seed: int) -> list[Item]:
    """Return `count` items drawn without replacement, in their own order; all where `count` is None or not smaller."""
    if count is None or count >= len(items):
        return list(items)
    chosen = sorted(random.Random(seed).sample(range(len(items)), count))
    return [items[index] for index in chosen]
