"""Read the rows that training takes: in LLaVA's format or of messages, as JSON or packed with their images."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cobra.preprocessing.datasets.other_forms import Form, form_of, refuse_other_forms, write_command
from cobra.preprocessing.datasets.row_keys import Row, with_image
from cobra.preprocessing.datasets.rows import MAX_ROW_BYTES, Defect, RowError, check_form, name_row
from cobra.preprocessing.forms.records import Record
from cobra.preprocessing.forms.to_rows import to_row
from cobra.preprocessing.packed.files import is_packed
from cobra.preprocessing.packed.rows import PackedRows
from cobra.util.errors import UserError
from cobra.util.jsonl import read_records, to_json

_ROW_FORM = (
    '{"id": ..., "image": a path, "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, '
    "...]}"
)
_FILE_FORM = f"Expected is a JSON list of rows, or JSON lines with a row each: {_ROW_FORM}."


class CheckedRow(NamedTuple):
    """A row of the right form."""

    number: int
    """Its place in the file: see :func:`cobra.preprocessing.datasets.rows.name_row`."""
    row: Row
    """In LLaVA's format; its image, if it has one, stands under `image`
    (:func:`cobra.preprocessing.datasets.row_keys.image_of`)."""
    json: bytes
    """The row as JSON, UTF-8."""


def check_rows(path: Path) -> Iterator[CheckedRow]:
    """Yield every row; JSON lines and packed rows are read one by one, a JSON list is read whole.

    Rows of messages become rows in LLaVA's format, and so do packed ones of a question and an answer; no image is read.

    Args:
        path: A JSON list, JSON lines, or what :func:`cobra.preprocessing.packed.files.is_packed` finds packed.

    Raises:
        UserError: The file is not of its form (with the line) or has no rows, or a row is too large, has no
            conversation, an unknown or misplaced role, or several images or one elsewhere than under `image` (with the
            row's number and id).
    """
    refuse_other_forms(path)
    rows = PackedRows(path) if is_packed(path) else None
    records = _json_records(path) if rows is None else ((number, row, None) for number, row in rows.records())
    empty = True
    for number, value, text in records:
        empty = False
        try:
            row = _in_llava_form(value, is_packed=text is None)
            image = check_form(row)
            whole = with_image(row, image)
            line = to_json(whole) if text is None or whole is not value else text
            if len(line) > MAX_ROW_BYTES:
                detail = f"has {len(line):,} bytes, more than the {MAX_ROW_BYTES:,} that a row may have"
                raise RowError(Defect.MALFORMED, detail)
        except RowError as error:
            way = f". Write such rows: {write_command(path)}" if rows is None and form_of(value) is Form.FIELDS else ""
            name = row_namer(path)(number, value)
            raise UserError(f"{name} {error.detail}; expected {_ROW_FORM}{way}") from error
        yield CheckedRow(number, whole, line)
    if empty:
        raise UserError(f"{path} (the annotation file) is empty. {_FILE_FORM}")


def _json_records(path: Path) -> Iterator[tuple[int, Any, bytes | None]]:
    yield from read_records(path, "the annotation file", _FILE_FORM)


def _in_llava_form(value: Any, is_packed: bool) -> Any:
    # JSON of a question and an answer under names of their own is guessed at by `check`, with its user at hand.
    if form_of(value) is Form.MESSAGES or is_packed:
        return to_row(Record("", value), None)
    return value


def row_namer(path: Path) -> Callable[[int, Any], str]:
    """Return the function from a row's number (:class:`CheckedRow`) and the row to its name in errors."""
    if not is_packed(path):
        return partial(name_row, path)
    rows = PackedRows(path)
    return lambda number, row: f"{rows.row_name(number)} (id {row.get('id')!r})"
