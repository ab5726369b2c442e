"""From `train.jsonl` to the JSON list that Cobra's finetune stage reads, a row at a time."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from cobra.preprocessing.llava_cot.images import ImageChecker
from cobra.preprocessing.llava_cot.report import Report
from cobra.preprocessing.llava_cot.rows import (
    Defect,
    RowError,
    check_row,
    encode_row,
    parse_line,
    read_lines,
    source_of,
)
from cobra.preprocessing.progress import byte_progress
from cobra.util.files import atomic_path

_MAX_SHOWN_ID = 200


class _NothingUsableError(Exception):
    """Unwinds the annotation file that would have been empty."""


def convert_rows(
    train: Path, annotation: Path, rejected: Path, checker: ImageChecker, root: str, report: Report
) -> None:
    """Convert the rows and check every image; of a row no more than a digest stays in memory.

    Args:
        train: The published JSON lines.
        annotation: The JSON list to write, one row a line; left as it was where no row is usable.
        rejected: JSON lines to write: `{"line", "id", "reason"}` of every rejected row.
        checker: Checks the images, whose paths are `root` + the row's path.
        root: Goes in front of the image paths: the empty string or a folder with a slash at its end.
        report: Counts are added to it.
    """
    with (
        atomic_path(rejected) as rejected_path,
        rejected_path.open("w", encoding="ascii") as rejected_file,
        suppress(_NothingUsableError),
        atomic_path(annotation) as rows_path,
    ):
        with rows_path.open("wb") as rows_file, byte_progress("converting rows", train.stat().st_size) as advance:
            conversion = _Conversion(rows_file, rejected_file, checker, root, report)
            for number, read, line in read_lines(train):
                conversion.take(number, line)
                advance(read)
            rows_file.write(b"\n]\n")
        if not report.rows_written:
            raise _NothingUsableError
    report.missing_images = checker.count(Defect.MISSING_IMAGE)
    report.unreadable_images = checker.count(Defect.UNREADABLE_IMAGE)


class _Conversion:
    """The state of one pass over the rows."""

    def __init__(
        self, rows_file: IO[bytes], rejected_file: IO[str], checker: ImageChecker, root: str, report: Report
    ) -> None:
        self._rows_file = rows_file
        self._rejected_file = rejected_file
        self._checker = checker
        self._root = root
        self._report = report
        self._seen: dict[bytes, int] = {}

    def take(self, number: int, line: bytes | None) -> None:
        """Write one line's row to the annotation file or to the rejected ones, and count it."""
        self._report.rows_read += 1
        value: dict[str, Any] | None = None
        try:
            value = parse_line(line)
            self._write(value, number)
        except RowError as error:
            row_id = None if value is None else _shown_id(value.get("id"))
            self._rejected_file.write(json.dumps({"line": number, "id": row_id, "reason": str(error)}) + "\n")
            self._report.count_rejected(error.defect, "(malformed line)" if value is None else source_of(value))

    def _write(self, value: dict[str, Any], number: int) -> None:
        row = check_row(value, number)
        image = None
        if row.image is not None:
            image = self._root + row.image
            self._checker.check(image)
        encoded = encode_row(row, image)
        self._refuse_duplicate(json.dumps([value.get("id"), row.image, row.turns]).encode(), number)
        self._rows_file.write((b",\n" if self._report.rows_written else b"[\n") + encoded)
        self._report.count_row(row, source_of(value))

    def _refuse_duplicate(self, content: bytes, number: int) -> None:
        first = self._seen.setdefault(hashlib.blake2b(content, digest_size=16).digest(), number)
        if first != number:
            raise RowError(Defect.DUPLICATE, f"of line {first}")


def _shown_id(row_id: Any) -> str | int | None:
    """Return an id as it can stand in the rejected rows, whatever the row gives as its id."""
    if row_id is None or isinstance(row_id, int):
        return row_id
    return (row_id if isinstance(row_id, str) else repr(row_id))[:_MAX_SHOWN_ID]
