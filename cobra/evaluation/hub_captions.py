"""Captions and images out of a data set of the hub, such as lmms-lab/COCO-Caption2017, or of its files on the disk."""

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cobra.evaluation.entries import CaptionedImage, ImageId, photo_number, refuse, shortened, whole_text
from cobra.evaluation.pictures import Pictures
from cobra.preprocessing.archives import unsafe_name
from cobra.util.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

CAPTION_COLUMNS = ("answer", "captions", "caption", "sentences", "sentences_raw", "references", "text")
"""Where captions are looked for, the first that is there: a text, a list of texts, or a list of objects with `raw`."""
ID_COLUMNS = ("image_id", "cocoid", "file_name", "filename", "question_id", "img_id", "id")
"""Where an image's id is looked for; the file name of a photo of COCO stands for its number."""
NAME_COLUMNS = ("file_name", "filename")
SPLITS = ("val", "validation", "test")
"""The split is the first of these that is there, unless one is asked for or there is only one. In lmms-lab's sets
`test` has no captions."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILE = re.compile(r".*\.(?:json|jsonl|txt|csv|tsv|npy|zip)", re.IGNORECASE)
# What rows without splits are called; `all` means something else to `datasets`.
_ONLY_SPLIT = "rows"
_ON_DISK = ("dataset_info.json", "dataset_dict.json")


def is_dataset(source: Path | str) -> bool:
    """Return whether a path or name is one of a data set.

    That is a Parquet file, a folder with such or one that `Dataset.save_to_disk` wrote, or what may be an id of the
    hub.
    """
    path = Path(source)
    if path.is_file():
        return path.suffix == ".parquet"
    if path.is_dir():
        # A clone of a repository keeps its files in folders.
        return any((path / name).is_file() for name in _ON_DISK) or any(path.rglob("*.parquet"))
    return bool(_REPOSITORY.fullmatch(str(source))) and not _FILE.fullmatch(str(source))


class RowPictures(Pictures):
    """The images in the rows of a data set; each is read from the disk when it is asked for."""

    def __init__(self, dataset: "Dataset", column: str, rows: dict[ImageId, int], name: str) -> None:
        """Remember where the images are.

        Args:
            dataset: The rows.
            column: Its column of images, which stays encoded.
            rows: The row of each image.
            name: What messages call the data set.
        """
        import datasets

        self._rows = rows
        self._column = column
        self._dataset = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self._name = name

    @property
    def name(self) -> str:
        """The data set."""
        return self._name

    def has(self, image: CaptionedImage) -> bool:
        """Return whether the image has a row, without reading it."""
        return image.image_id in self._rows

    def file(self, image: CaptionedImage) -> Path | io.BytesIO | None:
        """Return the encoded image of a row."""
        value = self._dataset[self._rows[image.image_id]][self._column] if self.has(image) else None
        if value is None:
            return None
        if value["bytes"] is not None:
            return io.BytesIO(value["bytes"])
        path = Path(value["path"] or "")
        return path if os.path.isfile(path) else None

    def others(self) -> list[str]:
        """Return a few ids."""
        return [str(image_id) for image_id in list(self._rows)[:3]]


def read_hub_captions(source: Path | str, split: str | None) -> tuple[list[CaptionedImage], Pictures | None, str]:
    """Read the captions of a data set's split; rows of the same image are put together.

    Args:
        source: As :func:`is_dataset` accepts it. What the hub gives is kept in the cache of `datasets`, the one split
            alone.
        split: Its name; None takes one of `SPLITS`.

    Returns:
        The images in the order of their first rows, their pictures (None where the rows hold none), and the split.

    Raises:
        UserError: The data set cannot be had, has no such split or no captions, or images without any.
    """
    dataset, split = _open(source, split)
    name = f"the split {split} of {source}"
    columns = dataset.column_names
    captions = next((column for column in CAPTION_COLUMNS if column in columns), None)
    if captions is None:
        raise UserError(
            f"{name} has no column of captions, {', '.join(CAPTION_COLUMNS)} being known; it has {', '.join(columns)}"
        )
    kept = [column for column in dict.fromkeys((*ID_COLUMNS, *NAME_COLUMNS, captions)) if column in columns]
    rows: dict[ImageId, int] = {}
    names: dict[ImageId, str] = {}
    references: dict[ImageId, list[str]] = {}
    for number, row in enumerate(dataset.select_columns(kept)):
        image_id = _image_id(row, number)
        if image_id not in rows:
            rows[image_id] = number
            names[image_id] = _file_name(row, number)
        references.setdefault(image_id, []).extend(_captions(row[captions], f"row {number} of {name}, {captions}"))
    bare = [image_id for image_id, texts in references.items() if not texts]
    refuse(bare, f"{name} has no caption for", "Choose another split, with --split, or leave them out.")
    if not rows:
        raise UserError(f"{name} has no rows")
    images = [CaptionedImage(image_id, names[image_id], tuple(texts)) for image_id, texts in references.items()]
    column = _image_column(dataset)
    return images, RowPictures(dataset, column, rows, name) if column else None, split


def _open(source: Path | str, split: str | None) -> tuple["Dataset", str]:
    """Return the rows of a split and its name; of the hub's files only those of the split are fetched."""
    # It takes a second to import.
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    path = Path(source)
    try:
        if any((path / name).is_file() for name in _ON_DISK):
            loaded = datasets.load_from_disk(str(path))
            splits = loaded if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or _ONLY_SPLIT): loaded}
            chosen = _choose(list(map(str, splits)), split, source)
            return splits[chosen], chosen
        builder = (
            datasets.load_dataset_builder("parquet", data_files={_ONLY_SPLIT: str(path)})
            if path.is_file()
            else datasets.load_dataset_builder(str(source))
        )
        files = builder.config.data_files or {}
        chosen = _choose(list(map(str, files)), split, source)
        return datasets.load_dataset(builder.name, data_files={chosen: files[chosen]}, split=chosen), chosen
    except UserError:
        raise
    except (OSError, ValueError, DatasetsError, HTTPError) as error:
        problem = (
            "cannot be read as a data set"
            if path.exists()
            else "is neither a file or folder here nor a data set that can be had from the hub"
        )
        raise UserError(f"{source} {problem}: {' '.join(str(error).split())[:300]}") from error


def _choose(splits: Sequence[str], split: str | None, source: Path | str) -> str:
    if split is None:
        split = splits[0] if len(splits) == 1 else next((name for name in SPLITS if name in splits), None)
    if split in splits:
        return str(split)
    found = f"no split {split!r}" if split else "several splits and none of the usual names"
    raise UserError(f"{source} has {found}; it has {', '.join(splits) or 'none'}. Choose one with --split.")


def _image_column(dataset: "Dataset") -> str | None:
    """Return the column of images: one of that type, or of encoded bytes with a path."""
    import datasets

    found = [
        name
        for name, feature in dataset.features.items()
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
    ]
    return "image" if "image" in found else next(iter(found), None)


def _image_id(row: dict[str, Any], number: int) -> ImageId:
    """Return the id of a row's image: the number of a photo of COCO, another id, or the row's own number."""
    values = [row[column] for column in ID_COLUMNS if column in row]
    image_id = next((value for value in values if isinstance(value, int | str) and value != ""), number)
    photo = photo_number(image_id)
    return photo if photo is not None else image_id


def _file_name(row: dict[str, Any], number: int) -> str:
    """Return a name for the image that is fit to be a path: its own, that of the photo of COCO, or the row's number."""
    names = [row[column] for column in (*NAME_COLUMNS, "question_id") if column in row]
    if isinstance(row.get("cocoid"), int):
        names.append(f"{row['cocoid']:012d}.jpg")
    return next((name for name in names if isinstance(name, str) and not unsafe_name(name)), f"row {number}")


def _captions(value: Any, where: str) -> list[str]:
    values = [value] if isinstance(value, str) else [] if value is None else value
    texts = []
    for entry in values:
        text = entry.get("raw") if isinstance(entry, dict) else entry
        if not isinstance(text, str):
            raise UserError(f"{where} is {shortened(value)}, and a text or a list of texts was expected")
        texts.append(whole_text(text))
    return texts
