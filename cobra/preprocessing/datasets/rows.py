"""Check rows in LLaVA's format."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Any

from cobra.preprocessing.datasets.row_keys import Row, image_of, unread_problem
from cobra.util.conversation import ROLES
from cobra.util.jsonl import opens_list

MAX_ROW_BYTES = 16 * 2**20
"""The published rows have some 2 KB; a hostile one may not fill the memory."""
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
            turn["value"].isascii() or turn["value"].encode()
        except UnicodeEncodeError as error:
            detail = f"has a turn {number} whose text holds half a surrogate pair, which no tokenizer can read"
            raise RowError(Defect.MALFORMED, detail) from error
        if (role := turn.get("from")) != expected:
            raise RowError(Defect.ROLE_ORDER, f"has a turn {number} from {role!r} where {expected!r} was expected")


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
