"""Rows in LLaVA's format, read from an annotation file and checked: a JSON list, or a row a line in `.jsonl`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cobra.util.errors import UserError
from cobra.util.files import read_json

PLACEHOLDER = "<image>"
_ROLES = ("human", "gpt")
_ENCODER = json.JSONEncoder(ensure_ascii=False)

Row = dict[str, Any]


class CheckedRow(NamedTuple):
    """A row of the right form."""

    number: int
    """Its place in the file: see :func:`name_row`."""
    row: Row
    json: bytes
    """The row as JSON, UTF-8."""


def name_row(path: Path, number: int, row: Any) -> str:
    """Return what errors call a row: its number from 0 in a JSON list, its line from 1 in JSON lines, and its id."""
    identity = f" (id {row.get('id')!r})" if isinstance(row, dict) else ""
    return f"{'line' if _has_lines(path) else 'row'} {number}{identity} of {path}"


def check_rows(path: Path) -> Iterator[CheckedRow]:
    """Yield every row of a file; JSON lines are read one by one, a JSON list is read whole.

    Raises:
        UserError: The file is not JSON (with the line) or has no rows, or a row has no conversation, an unknown or
            misplaced role, or an image that is not a path (with the row's number and id).
    """
    for number, row, text in _lines(path) if _has_lines(path) else _items(path):
        problem = _row_problem(row)
        if problem:
            raise UserError(
                f'{name_row(path, number, row)} {problem}; expected {{"id": ..., "image": a path, '
                '"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]}'
            )
        yield CheckedRow(number, row, text)


def _has_lines(path: Path) -> bool:
    return path.suffix == ".jsonl"


def _items(path: Path) -> Iterator[CheckedRow]:
    rows = read_json(path, "the annotation file")
    if not isinstance(rows, list) or not rows:
        raise UserError(
            f"{path} must be a JSON list of rows and holds {'an empty list' if rows == [] else type(rows).__name__}"
        )
    for number, row in enumerate(rows):
        # An id may hold half a surrogate pair, which plain UTF-8 has no bytes for; json.loads reads these.
        yield CheckedRow(number, row, _ENCODER.encode(row).encode("utf-8", "surrogatepass"))


def _lines(path: Path) -> Iterator[CheckedRow]:
    empty = True
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.strip(b" \t\r\n")
            if text:
                empty = False
                yield CheckedRow(number, _parsed(path, number, text), text)
    if empty:
        raise UserError(f"{path} must hold a JSON object a line and is empty")


def _parsed(path: Path, number: int, text: bytes) -> Any:
    where = f"line {number} of {path} (the annotation file)"
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text: {error.reason} at its byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON: column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise UserError(f"{where} holds lists or objects nested too deeply to be read") from error
    except ValueError as error:
        # A number of thousands of digits, which Python refuses to convert.
        raise UserError(f"{where} cannot be read as JSON: {error}") from error


def _row_problem(row: Any) -> str | None:
    """Return what is wrong with a row, or None."""
    if not isinstance(row, dict):
        return f"is a {type(row).__name__}"
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        return "has no conversations"
    for place, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            return f"has a turn {place} without a text in 'value'"
        if not _is_unicode(turn["value"]):
            return f"has a turn {place} whose text holds half a surrogate pair, which no tokenizer can read"
        if turn.get("from") != _ROLES[place % 2]:
            return f"has a turn {place} from {turn.get('from')!r} where {_ROLES[place % 2]!r} was expected"
    if "image" in row and not (isinstance(row["image"], str) and row["image"]):
        return f"has the image {row['image']!r}, which is not a path"
    return None


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded; JSON's escapes can spell half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
