"""Read the records of a file or folder one by one, in whichever form they are."""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cobra.preprocessing.datasets.other_forms import ANSWER_COLUMNS, Form, form_of, table_delimiter
from cobra.preprocessing.datasets.row_keys import spelled
from cobra.preprocessing.datasets.rows import MAX_ROW_BYTES, Defect, RowError, name_row
from cobra.preprocessing.packed.files import is_packed
from cobra.preprocessing.packed.rows import PackedRows
from cobra.util.errors import UserError
from cobra.util.files import encoding_of, read_text
from cobra.util.jsonl import read_records
from cobra.util.printable import listed

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_DATA_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
_USUAL_NAMES = ("rows.json", "rows.jsonl", "rows.csv", "rows.tsv")
_EXPECTED = (
    "Expected are rows as JSON or JSON lines, Parquet, a folder of save_to_disk, a CSV or TSV table with column names, "
    "or a folder of images with texts"
)


class Record(NamedTuple):
    """One item of the data, as it stands there."""

    name: str
    """Its place, for errors: `line 3 of my/rows.csv`."""
    value: Any
    """A parsed row, a row of a table as a dict of texts, or a RowError."""


@dataclass(frozen=True)
class Source:
    """Data as they were brought."""

    path: Path
    """The file, or the folder of images with texts."""
    form: Form
    """Form of the first record."""

    @property
    def folder(self) -> Path:
        """The folder that the data lie in."""
        return self.path if self.path.is_dir() else self.path.parent

    def records(self) -> Iterator[Record]:
        """Yield the records; of JSON lines and tables one is in memory at a time.

        Raises:
            UserError: The file is absent, is no text, or is not of its form (with the line).
        """
        if self.form is Form.FOLDER:
            yield from _captioned_images(self.path)
        elif self.form is Form.TABLE:
            yield from _table_rows(self.path)
        elif self.form is Form.PACKED:
            rows = PackedRows(self.path)
            for number, row in rows.records():
                yield Record(rows.row_name(number), row)
        else:
            for number, value, _ in read_records(self.path, "the data", f"{_EXPECTED}."):
                yield Record(name_row(self.path, number, value), value)


def find_source(data: Path) -> Source:
    """Find the data in a file or a folder.

    Packed rows are a file or folder of themselves, unless `rows.json` or the like lies there. Else a folder's data are
    its `rows.json`, `rows.jsonl`, `rows.csv` or `rows.tsv`, its only such file of another name, or its images with
    texts.

    Raises:
        UserError: It does not exist, is a pipe or a device, or holds several files, or none and no images.
    """
    if not data.exists():
        raise UserError(f"the data do not exist: {data}. {_EXPECTED}")
    if is_packed(data) and not any((data / name).is_file() for name in _USUAL_NAMES):
        return Source(data, Form.PACKED)
    path = _file_in(data) if data.is_dir() else data
    if path is None:
        if next(_files(data, IMAGE_ENDINGS), None) is None:
            raise UserError(f"{data} holds neither rows nor images. {_EXPECTED}")
        return Source(data, Form.FOLDER)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is no regular file but a pipe or a device, and would be waited for. {_EXPECTED}")
    if table_delimiter(path) is not None:
        return Source(path, Form.TABLE)
    first = next(read_records(path, "the data", f"{_EXPECTED}."), None)
    if first is None:
        raise UserError(f"{path} is empty. {_EXPECTED}")
    return Source(path, form_of(first.value))


def _file_in(folder: Path) -> Path | None:
    for name in _USUAL_NAMES:
        if (folder / name).exists() and not (folder / name).is_dir():
            return folder / name
    others = sorted(path for path in folder.iterdir() if path.suffix.lower() in _DATA_ENDINGS and path.name[0] != ".")
    if len(others) > 1:
        names = listed([path.name for path in others])
        raise UserError(f"{folder} holds several files that may be the rows ({names}): name one of them")
    return others[0] if others else None


def _files(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files below a folder with these endings, in order; hidden ones and folders are passed over."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (Path(parent, name) for name in sorted(names) if name[0] != "." and name.lower().endswith(endings))


def _captioned_images(folder: Path) -> Iterator[Record]:
    """Yield each image of a folder with the text of the file of its name; either may lack the other."""
    images = set()
    for image in _files(folder, IMAGE_ENDINGS):
        images.add(image.with_suffix(""))
        text = image.with_suffix(".txt")
        value: Any = RowError(Defect.NO_ANSWER, f"has no text file {text.name} beside it")
        if text.is_file():
            path = image.relative_to(folder).as_posix()
            try:
                value = {"id": path, "image": path, "caption": read_text(text, "the text of an image")}
            except UserError as error:
                value = RowError(Defect.MALFORMED, f"has a text that cannot be read: {error}")
        yield Record(str(image), value)
    for text in _files(folder, (".txt",)):
        if text.with_suffix("") not in images:
            yield Record(str(text), RowError(Defect.MISSING_IMAGE, "has no image of its name beside it"))


def _table_rows(path: Path) -> Iterator[Record]:
    csv.field_size_limit(MAX_ROW_BYTES)
    delimiter = table_delimiter(path)
    assert delimiter is not None
    with path.open("rb") as file:
        text = io.TextIOWrapper(file, encoding_of(file.read(4)), newline="")
        file.seek(0)
        reader = csv.DictReader(text, delimiter=delimiter)
        try:
            names = [name.strip() for name in reader.fieldnames or ()]
            if not any(spelled(name) in ANSWER_COLUMNS for name in names):
                raise UserError(
                    f"{path} has the columns {listed(names, 20)}, and none with the answers: call it one of "
                    f"{', '.join(ANSWER_COLUMNS)}"
                )
            if twice := [name for name, count in Counter(names).items() if name and count > 1]:
                raise UserError(f"{path} has the columns {listed(twice)} more than once: take one of each out")
            reader.fieldnames = names
            for row in reader:
                surplus = row.pop(None, None)
                value: Any = row
                if surplus:
                    detail = f"has more cells than the {len(names)} columns: put texts with {delimiter!r} in quotes"
                    value = RowError(Defect.MALFORMED, detail)
                yield Record(f"line {reader.line_num} of {path}", value)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as that"
            ) from error
        except csv.Error as error:
            raise UserError(f"line {reader.line_num} of {path} is not a row of a table: {error}") from error
