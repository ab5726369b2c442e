"""COCO's files: caption annotations with their images, and captions in its results format."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from cobra.preprocessing.archives import unsafe_name
from cobra.util.errors import UserError
from cobra.util.files import read_json
from cobra.util.images import read_rgb

ImageId = int | str

# What download_extract("coco-captions") leaves.
DEFAULT_ANNOTATIONS = Path("data/download/coco-captions/annotations/captions_val2017.json")
DEFAULT_IMAGE_DIR = Path("data/download/coco-captions/val2017")
FETCH_COMMAND = "python scripts/preprocess.py --dataset_id coco-captions --root_dir data"

# How many ids or names an error lists.
_SHOWN = 5


@dataclass(frozen=True)
class CaptionedImage:
    """An image and the human captions that answers are compared with."""

    image_id: ImageId
    file_name: str
    """Path below the image folder, `/` between folders; it leads nowhere else."""
    references: tuple[str, ...]


def read_captions(annotations: Path) -> list[CaptionedImage]:
    """Read a caption annotation file in COCO's form: `images` (id, file_name) and `annotations` (image_id, caption).

    Returns:
        The images in the file's order, each with its captions in the file's order.

    Raises:
        UserError: The file is missing, is not JSON (with the line) or not of that form, an image has no caption or is
            there twice, a caption belongs to no image, or a file name leads out of the image folder.
    """
    content = read_json(annotations, "the annotation file", f"COCO's own comes with: {FETCH_COMMAND}")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations")
    ):
        raise UserError(f"{annotations} is not a COCO caption file: it has no lists `images` and `annotations`")
    names = _file_names(content["images"], annotations)
    captions: dict[ImageId, list[str]] = {image_id: [] for image_id in names}
    for number, entry in enumerate(content["annotations"]):
        where = f"{annotations}: annotations[{number}]"
        image_id, caption = _fields(entry, "image_id", "caption", where)
        if image_id not in captions:
            raise UserError(f"{where}: the caption belongs to the image {image_id!r}, which `images` does not list")
        captions[image_id].append(caption)
    bare = [image_id for image_id in names if not captions[image_id]]
    _refuse(bare, f"{annotations} has no caption for", "Take them out of `images`, or add captions.")
    return [CaptionedImage(image_id, name, tuple(captions[image_id])) for image_id, name in names.items()]


def _file_names(entries: list[Any], annotations: Path) -> dict[ImageId, str]:
    names: dict[ImageId, str] = {}
    for number, entry in enumerate(entries):
        where = f"{annotations}: images[{number}]"
        image_id, name = _fields(entry, "id", "file_name", where)
        problem = unsafe_name(name)
        if problem:
            raise UserError(f"{where}: the file name {name!r} {problem}")
        if image_id in names:
            raise UserError(f"{where}: the id {image_id!r} was there before")
        names[image_id] = name
    if not names:
        raise UserError(f"{annotations} lists no images")
    return names


def read_results(path: Path, known: Iterable[ImageId], wanted: Iterable[ImageId]) -> dict[ImageId, str]:
    """Read captions in COCO's results format: a list of `{"image_id": ..., "caption": ...}`.

    Args:
        path: The file.
        known: Ids of all images that have references.
        wanted: Ids among them that a caption is needed for.

    Returns:
        The caption of every wanted image.

    Raises:
        UserError: The file is missing, is not JSON (with the line) or not of that form, or its ids repeat, are unknown
            or lack wanted ones.
    """
    content = read_json(path, "the predictions file")
    if not isinstance(content, list):
        raise UserError(f'{path} is not in COCO\'s results format: a list of {{"image_id", "caption"}} was expected')
    rows = [_fields(entry, "image_id", "caption", f"{path}: [{number}]") for number, entry in enumerate(content)]
    captions = dict(rows)
    repeated = [image_id for image_id, count in Counter(image_id for image_id, _ in rows).items() if count > 1]
    _refuse(repeated, f"{path} has more than one caption for", "Leave one for each image.")
    known_ids = set(known)
    unknown = [image_id for image_id in captions if image_id not in known_ids]
    _refuse(unknown, f"{path} has captions for", "The annotation file does not know them: give the one they belong to.")
    missing = [image_id for image_id in wanted if image_id not in captions]
    _refuse(missing, f"{path} has no caption for", "Add them: a missing answer cannot be scored.")
    return {image_id: captions[image_id] for image_id in wanted}


def sample(images: Sequence[CaptionedImage], count: int | None, seed: int) -> list[CaptionedImage]:
    """Return `count` images drawn without replacement, in their own order; all where `count` is None or not smaller."""
    if count is None or count >= len(images):
        return list(images)
    chosen = sorted(random.Random(seed).sample(range(len(images)), count))
    return [images[index] for index in chosen]


def check_images(images: Sequence[CaptionedImage], image_dir: Path) -> None:
    """Decode every image, so that none is found missing or damaged after hours of generation.

    Raises:
        UserError: The folder does not exist, or images in it are missing or unreadable: their number and the first few.
    """
    if not image_dir.is_dir():
        raise UserError(f"The image folder does not exist: {image_dir}. COCO's own comes with: {FETCH_COMMAND}")
    missing = [image.file_name for image in images if not (image_dir / image.file_name).is_file()]
    _refuse(missing, f"{image_dir} lacks", f"Give the folder that the annotation file names; COCO's: {FETCH_COMMAND}")
    unreadable = []
    for image in track(images, description="Checking images", transient=True):
        try:
            load_image(image_dir / image.file_name)
        except UserError as error:
            unreadable.append(str(error))
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(images)} images are unreadable: {'; '.join(unreadable[:_SHOWN])}"
            f"{'; ...' if len(unreadable) > _SHOWN else ''}. Fetch them again, or take them out of the annotation file."
        )


def load_image(path: Path) -> Image.Image:
    """Read an image as RGB.

    Raises:
        UserError: It cannot be decoded.
    """
    try:
        return read_rgb(path)
    # Pillow's decoders raise nearly anything on damaged files.
    except Exception as error:
        reason = str(error).replace(repr(str(path)), "the file")
        raise UserError(f"{path} is not a readable image ({' '.join(reason.split())})") from error


def _fields(entry: Any, id_key: str, text_key: str, where: str) -> tuple[ImageId, str]:
    """Return the id and the text of an entry, checked for their types."""
    image_id, text = (entry.get(id_key), entry.get(text_key)) if isinstance(entry, dict) else (None, None)
    if isinstance(image_id, bool) or not isinstance(image_id, int | str) or not isinstance(text, str):
        raise UserError(
            f"{where} is {_shortened(entry)}, and an object with `{id_key}` (a number or text) and `{text_key}` (text) "
            "was expected"
        )
    # A lone surrogate, which JSON can spell and UTF-8 cannot, becomes a question mark.
    return image_id, text.encode("utf-8", "replace").decode("utf-8")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refuse(found: Sequence[ImageId], problem: str, remedy: str) -> None:
    """Raise a UserError that counts what was found and names the first few, if anything was."""
    if found:
        shown = ", ".join(map(str, found[:_SHOWN]))
        images = "1 image" if len(found) == 1 else f"{len(found)} images"
        more = ", ..." if len(found) > _SHOWN else ""
        raise UserError(f"{problem} {images}: {shown}{more}. {remedy}")
