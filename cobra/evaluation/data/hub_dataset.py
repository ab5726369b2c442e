"""Reader of captions and images in data sets of the hub, such as lmms-lab/COCO-Caption2017, or in files of one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cobra.evaluation.data.captioned_image import (
    CaptionedImage,
    ImageId,
    photo_number,
    refuse_images,
    shortened,
    whole_text,
)
from cobra.evaluation.data.image_index import ImageNames, KnownImages
from cobra.evaluation.data.image_sources import Pictures
from cobra.evaluation.data.row_images import RowPictures, image_column
from cobra.evaluation.data.split_column import choose_rows
from cobra.models.hub import check_hub
from cobra.preprocessing.archives import unsafe_name
from cobra.util.errors import UserError
from cobra.util.redaction import reason

if TYPE_CHECKING:
    from datasets import Dataset

CAPTION_COLUMNS = ("answer", "captions", "caption", "sentences", "sentences_raw", "references", "text")
"""Columns searched for captions, in this order: a text, a list of texts, or a list of objects with `raw`."""
ID_COLUMNS = ("image_id", "cocoid", "file_name", "filename", "question_id", "img_id", "id")
"""Columns searched for an image's id; the file name of a photo of COCO stands for its number."""
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
    """Return True if a path or name is one of a data set.

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


@dataclass(frozen=True)
class HubCaptions:
    """Images, in the order of their first rows, and captions read from a data set."""

    images: list[CaptionedImage]
    known: KnownImages
    """All images of the rows, those of other splits too where a column names them."""
    pictures: Pictures | None
    """None where the rows hold none."""
    split: str
    remarks: tuple[str, ...]


def read_hub_captions(source: Path | str, split: str | None) -> HubCaptions:
    """Read the captions of a data set's split; rows of the same image are put together.

    Where the data set is one split by its files and a column `split` says otherwise, the column counts, and the remarks
    say so.

    Args:
        source: As :func:`is_dataset` accepts it; the hub's one split is kept in the cache of `datasets`.
        split: Its name; None takes one of `SPLITS`.

    Raises:
        UserError: The data set cannot be had, has no such split or no captions, images without any, or rows of several
            images.
    """
    dataset, splits, chosen = _open(source, split)
    named = choose_rows(dataset, splits, chosen, split, source)
    split = named.split
    name = f"the split {split} of {source}"
    columns = dataset.column_names
    captions = next((column for column in CAPTION_COLUMNS if column in columns), None)
    if captions is None:
        raise UserError(
            f"{name} has no column of captions, {', '.join(CAPTION_COLUMNS)} being known; it has {', '.join(columns)}"
        )
    kept = [column for column in dict.fromkeys((*ID_COLUMNS, *NAME_COLUMNS, captions)) if column in columns]
    rows: dict[ImageId, int] = {}
    names: dict[ImageId, ImageNames] = {}
    references: dict[ImageId, list[str]] = {}
    id_column: str | None = None
    for number, row in enumerate(dataset.select_columns(kept)):
        ids = _ids(row)
        column, image_id = next(((key, value) for key, value in ids.items() if value is not None), (None, number))
        photo = photo_number(image_id)
        image_id = image_id if photo is None else photo
        if number == 0:
            id_column = column
        elif column != id_column:
            # An id of another column, or the row's number, may be that of another image.
            raise UserError(
                f"rows 0 and {number} of {name} have their ids in different places, {id_column or 'nowhere'} and "
                f"{column or 'nowhere'}: give every row its id in one column of {', '.join(ID_COLUMNS)}"
            )
        names.setdefault(image_id, ImageNames(_file_name(row, ids), tuple(ids.values())))
        if named.holds(number):
            rows.setdefault(image_id, number)
            where = f"row {number} of {name}, {captions}"
            references.setdefault(image_id, []).extend(_captions(row[captions], where))
    bare = [image_id for image_id, texts in references.items() if not texts]
    refuse_images(bare, f"{name} has no caption for", "Choose another split, with --split, or leave them out.")
    if not rows:
        raise UserError(f"{name} has no rows")
    images = [
        CaptionedImage(image_id, names[image_id].file_name or f"row {rows[image_id]}", tuple(texts))
        for image_id, texts in references.items()
    ]
    pictured = image_column(dataset)
    pictures = RowPictures(dataset, pictured, rows, name) if pictured else None
    return HubCaptions(images, names, pictures, split, named.remarks)


def _open(source: Path | str, split: str | None) -> tuple["Dataset", list[str], str]:
    """Return the rows of a split, all splits' names and its own; of the hub's files only those of it are fetched."""
    path = Path(source)
    if not path.exists():
        check_hub()
    # It takes a second to import, and reads then whether the hub answers.
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    try:
        if any((path / name).is_file() for name in _ON_DISK):
            loaded = datasets.load_from_disk(str(path))
            splits = loaded if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or _ONLY_SPLIT): loaded}
            names = list(map(str, splits))
            chosen = _choose(names, split, source)
            return splits[chosen], names, chosen
        name, given = ("parquet", {_ONLY_SPLIT: str(path)}) if path.is_file() else (str(source), None)
        builder = datasets.load_dataset_builder(name, data_files=given)
        files = builder.config.data_files or {}
        names = list(map(str, files))
        chosen = _choose(names, split, source)
        return datasets.load_dataset(builder.name, data_files={chosen: files[chosen]}, split=chosen), names, chosen
    except UserError:
        raise
    # Of a folder with a script of its own it says so in a RuntimeError.
    except (OSError, ValueError, RuntimeError, DatasetsError, HTTPError) as error:
        if path.exists():
            raise UserError(f"{source} cannot be read as a data set: {reason(error)}") from error
        raise UserError(
            f"{source} is neither a file or folder here nor a data set that can be had from the hub ({reason(error)}). "
            f"Where there is a network: hf download {source} --repo-type dataset --local-dir captions; then copy that "
            "folder here and give it as --coco_annotations"
        ) from error


def _choose(splits: Sequence[str], split: str | None, source: Path | str) -> str:
    """Return the split of the files to open: the only one even where another is asked for, as a column may name it."""
    if len(splits) == 1:
        return splits[0]
    if split is None:
        split = next((name for name in SPLITS if name in splits), None)
    if split in splits:
        return str(split)
    found = f"no split {split!r}" if split else "several splits and none of the usual names"
    raise UserError(f"{source} has {found}; it has {', '.join(splits) or 'none'}. Choose one with --split.")


def _ids(row: dict[str, Any]) -> dict[str, ImageId | None]:
    """Return what stands in the columns of ids that there are; a whole number that a table has made 42.0 is 42."""
    ids: dict[str, ImageId | None] = {}
    for column in (column for column in ID_COLUMNS if column in row):
        value = row[column]
        value = int(value) if isinstance(value, float) and value.is_integer() else value
        ids[column] = value if type(value) in (int, str) and value != "" else None
    return ids


def _file_name(row: dict[str, Any], ids: dict[str, ImageId | None]) -> str | None:
    """Return a name for the image that is fit to be a path: its own, or that of the photo of COCO."""
    names = [row[column] for column in NAME_COLUMNS if column in row]
    # An id may be the name of a photo.
    texts = (value for value in ids.values() if isinstance(value, str))
    names += [text for text in texts if not text.isdecimal() and photo_number(text)]
    if isinstance(row.get("cocoid"), int):
        names.append(f"{row['cocoid']:012d}.jpg")
    return next((name for name in names if isinstance(name, str) and not unsafe_name(name)), None)


def _captions(value: Any, where: str) -> list[str]:
    values = [value] if isinstance(value, str) else [] if value is None else value
    texts = []
    for entry in values:
        text = entry.get("raw") if isinstance(entry, dict) else entry
        if not isinstance(text, str):
            raise UserError(f"{where} is {shortened(value)}, and a text or a list of texts was expected")
        texts.append(whole_text(text))
    return texts
