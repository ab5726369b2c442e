"""Reader of caption sets: recognises the form of a file, folder or data set by its content."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cobra.evaluation.data.captioned_image import (
    FETCH_COMMAND,
    CaptionedImage,
    check_file_name,
    refuse_images,
    shortened,
    whole_text,
)
from cobra.evaluation.data.coco import parse_captions
from cobra.evaluation.data.hub_dataset import is_dataset, read_hub_captions
from cobra.evaluation.data.image_index import ImageNames, KnownImages
from cobra.evaluation.data.image_sources import PictureFolder, Pictures
from cobra.evaluation.data.karpathy import is_karpathy, keep_ids, parse_karpathy, read_ids
from cobra.util.errors import UserError
from cobra.util.files import read_json, sha256_file

FOLDER_FILES = ("captions.json", "metadata.jsonl")
"""The captions of a folder of images: `{file name: [captions]}`, or a list of `{"file_name", "captions"}`; as JSON
lines too, which is how an image folder of the hub has them."""
_CAPTION_KEYS = ("captions", "caption", "text")


@dataclass(frozen=True)
class CaptionSet:
    """Images with their captions, and where the pictures are."""

    images: list[CaptionedImage]
    known: KnownImages
    """All images of the file, those of other splits too: a results file may have captions for them."""
    pictures: Pictures | None
    """None where no folder was given: enough to score captions that are there."""
    source: str
    """The file, folder or data set, as it was given."""
    form: str
    """Form of the source, e.g. `COCO captions`."""
    sha256: str
    """Digest of the file; for a data set, of the ids, file names and captions that were read, as JSON."""
    remarks: tuple[str, ...] = ()
    """Sentences on images that were left out or chosen."""


def read_caption_set(
    source: Path | str,
    image_dir: Path | None = None,
    split: str | None = None,
    image_ids: Path | str | None = None,
    list_file: Path | None = None,
) -> CaptionSet:
    """Read images with captions in any of the known forms.

    These are COCO's annotation file; Karpathy's `dataset_coco.json`; a JSON file of captions by file name, or a folder
    with such a `captions.json` or `metadata.jsonl`; and a data set of the hub, by its id or its files.

    Args:
        source: The file, the folder or the id.
        image_dir: Folder of the images; only a folder with such a file and a data set bring their own.
        split: Split of Karpathy's file (by default `test`) or of a data set.
        image_ids: Images to keep; see :func:`cobra.evaluation.data.karpathy.read_ids`.
        list_file: Written, with all images that an error is about, where they are more than it names.

    Raises:
        UserError: It has none of the forms, or is not as its form must be; the folder of the images does not exist.
    """
    path = Path(source)
    pictures: Pictures | None = None if image_dir is None else PictureFolder(image_dir)
    in_folder = next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
    if not in_folder and is_dataset(source):
        rows = read_hub_captions(source, split)
        images, known, remarks, form = rows.images, rows.known, rows.remarks, f"data set, split {rows.split}"
        listed = [[image.image_id, image.file_name, image.references] for image in images]
        sha256 = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
        pictures = pictures or rows.pictures
    else:
        if path.is_dir() and not in_folder:
            files = ", ".join(sorted(file.name for file in path.glob("*.json"))[:3])
            raise UserError(
                f"{path} holds neither {' nor '.join(FOLDER_FILES)} nor Parquet files: give an annotation file"
                + (f" (it holds {files}) and --image_dir" if files else "")
            )
        file = in_folder or path
        content = read_json(file, "the annotation file", f"COCO's own comes with: {FETCH_COMMAND}", lines=True)
        images, known, form, remarks = _parse(content, file, split)
        sha256 = sha256_file(file)
        pictures = pictures or (PictureFolder(path) if in_folder else None)
    if image_ids is not None:
        images = keep_ids(images, known, read_ids(image_ids), str(source), list_file)
        form = f"{form}, {len(images):,} of {image_ids}"
    return CaptionSet(images, known, pictures, str(source), form, sha256, remarks)


def _parse(
    content: Any, path: Path, split: str | None
) -> tuple[list[CaptionedImage], KnownImages, str, tuple[str, ...]]:
    """Return the images, the names of all, the name of the form, and remarks."""
    if is_karpathy(content):
        images, known = parse_karpathy(content, path, split)
        return images, known, f"Karpathy's captions, split {split or 'test'}", ()
    if split is not None:
        raise UserError(f"{path} has no splits: leave --split out")
    if _is_named(content):
        images = _parse_named(content, path)
        return images, {image.image_id: ImageNames(image.file_name) for image in images}, "captions by file name", ()
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        images, known, remarks = parse_captions(content, path)
        return images, known, "COCO captions", remarks
    raise UserError(
        f"{path} holds no captions in a known form: {_outline(content)}. Expected is COCO's file (`images` and "
        "`annotations`), Karpathy's (`images` with `sentences`), or captions by file name "
        '({"a.jpg": ["a dog", ...]}, or a list of {"file_name", "captions"}).'
    )


def _is_named(content: Any) -> bool:
    """Return True if the content, by its first entry, is captions by file name."""
    if isinstance(content, dict):
        first = next(iter(content.values()), None)
        return "images" not in content and "annotations" not in content and isinstance(first, str | list)
    return isinstance(content, list) and bool(content) and isinstance(content[0], dict) and "file_name" in content[0]


def _parse_named(content: Any, path: Path) -> list[CaptionedImage]:
    """Read captions by file name; the names are the ids."""
    if isinstance(content, dict):
        entries = [(f"{path}: {shortened(name)}", name, captions) for name, captions in content.items()]
    else:
        rows = [entry if isinstance(entry, dict) else {} for entry in content]
        entries = [
            (f"{path}: [{number}]", row.get("file_name"), next((row[key] for key in _CAPTION_KEYS if key in row), None))
            for number, row in enumerate(rows)
        ]
    images: dict[str, CaptionedImage] = {}
    for where, name, captions in entries:
        texts = [captions] if isinstance(captions, str) else captions
        if not isinstance(name, str) or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"{where} has the file name {shortened(name)} and the captions {shortened(captions)}; a text and a "
                "list of texts were expected"
            )
        check_file_name(name, where)
        if name in images:
            raise UserError(f"{where}: the file name {shortened(name)} was there before")
        images[name] = CaptionedImage(name, name, tuple(map(whole_text, texts)))
    bare = [name for name, image in images.items() if not image.references]
    refuse_images(bare, f"{path} has no caption for", "Take them out, or add captions.")
    return list(images.values())


def _outline(content: Any) -> str:
    """Say what a JSON value is, for a message."""
    inside = content[0] if isinstance(content, list) and content else content
    if not isinstance(inside, dict) or not inside:
        return shortened(content)
    keys = ", ".join(map(shortened, list(inside)[:5]))
    return f"{'an object' if inside is content else 'a list of objects'} with the keys {keys}"
