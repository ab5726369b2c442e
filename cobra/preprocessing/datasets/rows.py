"""Read and check rows in LLaVA's format: a JSON list, or JSON lines with a row each."""

import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from cobra.preprocessing.datasets.other_forms import Form, form_of, refuse_other_forms, write_command
from cobra.preprocessing.datasets.row_keys import Row, image_of, unread_problem, with_image
from cobra.util.conversation import ROLES
from cobra.util.errors import UserError
from cobra.util.jsonl import opens_list, read_records, to_json

_ROW_FORM = (
    '{"id": ..., "image": a path, "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, '
    "...]}"
)
MAX_ROW_BYTES = 16 * 2**20
"""The published rows have some 2 KB; a hostile one may not fill the memory."""
_FILE_FORM = f"Expected is a JSON list of rows, or JSON lines with a row each: {_ROW_FORM}."
TOP_FOLDERS = ("images", "image", "image_files")
"""Folders that archives of the images have in front of the folders of the sources."""
TEXT_ONLY = "(text only)"
NO_FOLDER = "(no folder)"


class Defect(StrEnum):
    """Reasons for which a row is rejected."""

    MALFORMED = "malformed line"
    NO_CONVERSATIONS = "no conversations"
    BAD_TURN = "bad turn"
    ROLE_ORDER = "role out of order"
    NO_ANSWER = "no answer"
    BAD_IMAGE_PATH = "bad image path"
    UNREAD_KEY = "key that is not read"
    MISSING_IMAGE = "missing image"
    UNREADABLE_IMAGE = "unreadable image"
    DUPLICATE = "duplicate"


class RowError(Exception):
    """A row cannot be used; the text is its `defect`, the reason, and `detail`, the finding."""

    def __init__(self, defect: Defect, detail: str) -> None:
        super().__init__(f"{defect}: {detail}")
        self.defect, self.detail = defect, detail


def check_form(row: Any) -> str | None:
    """Check that a parsed row can be trained on as it is meant; return its image's path, None for a row of text only.

    Raises:
        RowError: It cannot; the detail follows the row's name.
    """
    if not isinstance(row, dict):
        raise RowError(Defect.MALFORMED, f"is no object, but of the type {type(row).__name__}")
    _check_turns(row)
    try:
        image = image_of(row)
    except ValueError as error:
        raise RowError(Defect.BAD_IMAGE_PATH, str(error)) from error
    problem = unread_problem(row, image)
    if problem:
        raise RowError(Defect.UNREAD_KEY, problem)
    return image


def _check_turns(row: dict[str, Any]) -> None:
    turns = row.get("conversations")
    if turns is None and "messages" in row:
        raise RowError(Defect.NO_CONVERSATIONS, "has `messages` in place of `conversations`")
    if not isinstance(turns, list) or not turns:
        raise RowError(Defect.NO_CONVERSATIONS, "has no conversations")
    for number, turn in enumerate(turns, 1):
        expected = ROLES[1 - number % 2]
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise RowError(Defect.BAD_TURN, f"has a turn {number} without a text in 'value'")
        try:
            # JSON's escapes can spell half a surrogate pair.
            turn["value"].encode()
        except UnicodeEncodeError as error:
            detail = f"has a turn {number} whose text holds half a surrogate pair, which no tokenizer can read"
            raise RowError(Defect.MALFORMED, detail) from error
        if (role := turn.get("from")) != expected:
            raise RowError(Defect.ROLE_ORDER, f"has a turn {number} from {role!r} where {expected!r} was expected")


class CheckedRow(NamedTuple):
    """A row of the right form."""

    number: int
    """Its place in the file: see :func:`name_row`."""
    row: Row
    """Its image, if it has one, stands under `image`: :func:`cobra.preprocessing.datasets.row_keys.image_of`."""
    json: bytes
    """The row as JSON, UTF-8."""


def source_of(row: Row) -> str:
    """Return the data set that a row is from: the first folder of its image's path.

    LLaVA-CoT's paths begin with it (`sqa/train/1.png`), beneath one of `TOP_FOLDERS` where an archive was unpacked with
    it. A row without an image is of `TEXT_ONLY`, one whose path has no other folder of `NO_FOLDER`.
    """
    try:
        image = image_of(row)
    except ValueError:
        return NO_FOLDER
    if image is None:
        return TEXT_ONLY
    parts = [part for part in re.split(r"^[A-Za-z]:|[/\\]", image) if part not in ("", ".")]
    if parts and parts[0] in TOP_FOLDERS:
        parts = parts[1:]
    return parts[0] if len(parts) > 1 else NO_FOLDER


def name_row(path: Path, number: int, row: Any) -> str:
    """Return the name of a row in errors: number from 0 in a JSON list or line from 1 in JSON lines, and id."""
    identity = f" (id {row.get('id')!r})" if isinstance(row, dict) else ""
    return f"{'row' if opens_list(path) else 'line'} {number}{identity} of {path}"


def check_rows(path: Path) -> Iterator[CheckedRow]:
    """Yield every row of a file; JSON lines are read one by one, a JSON list is read whole.

    Raises:
        UserError: The file is not JSON (with the line) or has no rows, or a row is too large, has no conversation, an
            unknown or misplaced role, or several images or one elsewhere than under `image` (with the row's number and
            id).
    """
    refuse_other_forms(path)
    empty = True
    for number, row, text in read_records(path, "the annotation file", _FILE_FORM):
        empty = False
        try:
            if len(text) > MAX_ROW_BYTES:
                detail = f"has {len(text):,} bytes, more than the {MAX_ROW_BYTES:,} that a row may have"
                raise RowError(Defect.MALFORMED, detail)
            image = check_form(row)
        except RowError as error:
            way = f". Write such rows: {write_command(path)}" if form_of(row) is not Form.ROWS else ""
            raise UserError(f"{name_row(path, number, row)} {error.detail}; expected {_ROW_FORM}{way}") from error
        whole = with_image(row, image)
        yield CheckedRow(number, whole, text if whole is row else to_json(whole))
    if empty:
        raise UserError(f"{path} (the annotation file) is empty. {_FILE_FORM}")
