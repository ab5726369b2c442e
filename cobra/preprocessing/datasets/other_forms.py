"""Recognise the forms other than rows in which people bring their data, and name the command that writes rows."""

import csv
import io
from enum import StrEnum
from pathlib import Path
from typing import Any

from cobra.preprocessing.datasets.row_keys import Row, spelled
from cobra.preprocessing.packed.files import is_packed
from cobra.util.conversation import ROLES
from cobra.util.errors import UserError
from cobra.util.files import encoding_of
from cobra.util.program import command_line

IMAGE_COLUMNS = (
    *("image", "images", "image_path", "image_file", "image_name", "img", "img_path", "file_name", "filename", "file"),
    *("path", "picture", "photo"),
)
QUESTION_COLUMNS = ("question", "prompt", "instruction", "query", "user", "human", "input")
ANSWER_COLUMNS = (
    *("answer", "caption", "text", "response", "output", "completion", "label", "description", "assistant", "gpt"),
)
SPEAKERS = {
    **dict.fromkeys(("human", "user"), "human"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot"), "gpt"),
    "system": "system",
}
"""Who speaks in LLaVA's words, by the words of others."""
_OTHER_SPEAKERS = SPEAKERS.keys() - {*ROLES}
_COLUMNS = {*IMAGE_COLUMNS, *QUESTION_COLUMNS, *ANSWER_COLUMNS}
_DELIMITERS = ",\t;"
# Enough for the names of a table's columns.
_HEADER_BYTES = 65536


class Form(StrEnum):
    """Forms of data."""

    ROWS = "rows in LLaVA's format"
    MESSAGES = "rows of messages"
    FIELDS = "rows with a question and an answer"
    PACKED = "rows in Parquet or Arrow files"
    TABLE = "a table"
    FOLDER = "a folder of images with a text file each"


def form_of(row: Any) -> Form:
    """Return the form of a parsed row: `ROWS`, `MESSAGES` or `FIELDS`; `ROWS` also where it has none of them."""
    if not isinstance(row, dict):
        return Form.ROWS
    turns = turns_of(row)
    if turns is None:
        answered = any(spelled(key) in ANSWER_COLUMNS and not isinstance(row[key], list | dict) for key in row)
        return Form.FIELDS if answered else Form.ROWS
    if "conversations" not in row:
        return Form.MESSAGES
    for turn in turns:
        if isinstance(turn, dict) and ("role" in turn or str(turn.get("from")) in _OTHER_SPEAKERS):
            return Form.MESSAGES
    return Form.ROWS


def turns_of(row: Row) -> list[Any] | None:
    """Return the turns of a row, under whichever name they stand; None where it has none."""
    for key in ("conversations", "messages"):
        if isinstance(turns := row.get(key), list) and turns:
            return turns
    prompt, completion = row.get("prompt"), row.get("completion")
    # TRL's other form, of the turns before the answer and the answer.
    if isinstance(prompt, list) and isinstance(completion, list):
        return [*prompt, *completion] or None
    return None


def table_delimiter(path: Path) -> str | None:
    """Return what separates the columns of a table, by its first line; None where the file is no table."""
    with path.open("rb") as file:
        beginning = file.read(_HEADER_BYTES)
    header = beginning.decode(encoding_of(beginning), "replace").lstrip().partition("\n")[0].rstrip("\r")
    if header[:1] in ("{", "[", ""):
        return None
    try:
        columns = {sign: next(csv.reader(io.StringIO(header), delimiter=sign), []) for sign in _DELIMITERS}
    except csv.Error:
        # Bytes of another kind of file.
        return None
    delimiter = max(columns, key=lambda sign: len(columns[sign]))
    known = _COLUMNS.intersection(spelled(name.strip()) for name in columns[delimiter])
    is_named = path.suffix.lower() in (".csv", ".tsv")
    return delimiter if is_named or (len(columns[delimiter]) > 1 and known) else None


def refuse_other_forms(path: Path) -> None:
    """Raise a UserError, with the command that writes rows, where a path is a folder or a table and holds no rows."""
    remedy = ""
    if is_packed(path):
        return
    if path.is_dir():
        kind = "a folder"
        remedy = f"Name the file in it: {path / 'rows.json'}" if (path / "rows.json").is_file() else ""
    elif path.is_file() and table_delimiter(path) is not None:
        kind = "a table"
    else:
        return
    raise UserError(
        f"{path} is {kind}, and training reads a file of {Form.ROWS}. {remedy or f'Write one: {write_command(path)}'}"
    )


def write_command(path: Path) -> str:
    """Return the command that writes rows from a file or folder, to a file that is free."""
    folder = path if path.is_dir() else path.parent
    name = "llava_rows.json" if (folder / "rows.json").exists() else "rows.json"
    return command_line("check", str(path), "--write", str(folder / name))
