"""JSON lines: files of records, which may be a JSON list too, and logs whose last line a kill may have torn."""

import codecs
import errno
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cobra.util.errors import UserError
from cobra.util.files import decode, encoding_of, missing_file, parse_json, read_text

# Enough to see past a mark and blank lines; whole characters of every encoding.
_BEGINNING = 4096

_ENCODER = json.JSONEncoder(ensure_ascii=False)
_DECODER = json.JSONDecoder()
# JSON knows four kinds of white space.
_OPENING = re.compile(r"[ \t\n\r]*\[[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_CLOSING = re.compile(r"[ \t\n\r]*\][ \t\n\r]*\Z")


class Record(NamedTuple):
    """One value of a file of many."""

    number: int
    """Place in a JSON list, from 0; line in JSON lines, from 1."""
    value: Any
    json: bytes
    """The value as JSON, UTF-8."""


def opens_list(path: Path) -> bool:
    """Return True if a file is a JSON list, by its first character; JSON lines hold an object each."""
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    return beginning.decode(encoding_of(beginning), "ignore").lstrip()[:1] == "["


def read_records(path: Path, what: str, remedy: str) -> Iterator[Record]:
    """Yield the items of a JSON list, whose text is read whole, or the values of JSON lines, one line at a time.

    The content decides, not the name. A byte order mark is taken off, also in front of later lines, as files that were
    joined have it; blank lines are left out. The arguments are those of :func:`cobra.util.files.read_text`.

    Raises:
        UserError: The file is absent, is no text, or is not JSON (with line and column).
    """
    if not path.is_file():
        raise missing_file(path, what, remedy)
    if opens_list(path):
        yield from _items(read_text(path, what, remedy), f"{path} ({what})", remedy)
        return
    for number, line in enumerate(read_lines(path), 1):
        content = line.removeprefix(codecs.BOM_UTF8).strip()
        if content:
            where = f"line {number} of {path} ({what})"
            yield Record(number, parse_json(decode(content, "utf-8", where, remedy), where, remedy), content)


def _items(text: str, where: str, remedy: str) -> Iterator[Record]:
    """Yield the items of a JSON list, each with its part of the text: writing it anew takes longer than reading it."""
    number, opening = 0, _OPENING.match(text)
    place = -1 if opening is None else opening.end()
    while place >= 0:
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            break
        yield Record(number, value, text[place:end].encode())
        number += 1
        comma = _COMMA.match(text, end)
        if comma is None and _CLOSING.match(text, end):
            return
        place = -1 if comma is None else comma.end()
    # The list is empty, or the error is told.
    parse_json(text, where, remedy)


def to_json(value: Any) -> bytes:
    """Return a value as JSON in one line, UTF-8."""
    # A text may hold half a surrogate pair, which plain UTF-8 has no bytes for; json.loads reads these.
    return _ENCODER.encode(value).encode("utf-8", "surrogatepass")


def read_lines(path: Path, limit: int = -1) -> Iterator[bytes]:
    r"""Yield the lines of a text file as UTF-8, each with its `\n`; bytes of other files are left as they are.

    It is UTF-8, or UTF-16 or UTF-32 with a byte order mark. A line longer than the limit is yielded in pieces of at
    most so many bytes (of UTF-8 files; else characters).

    Raises:
        UserError: The file has the mark of UTF-16 or UTF-32 and is not of that encoding.
    """
    with path.open("rb") as file:
        encoding = encoding_of(file.read(4))
        if encoding.startswith("utf-8"):
            file.seek(0)
            while line := file.readline(limit):
                yield line
            return
    try:
        with path.open(encoding=encoding, newline="\n") as text:
            while characters := text.readline(limit):
                yield characters.encode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} has the mark of {encoding.upper()} and is not such text: {error.reason}") from error


def read_log(path: Path, start: int = 0) -> Iterator[tuple[int, Any]]:
    """Yield (bytes of the file up to its end, value) of the lines of a log; None is the value of one that is not whole.

    A kill, a full disk or a failing one may leave such lines, and a line without an end in the last place. `start` is
    the end of the line before the first.
    """
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            try:
                value = json.loads(line.decode("utf-8-sig")) if line.endswith(b"\n") else None
            except (ValueError, RecursionError):
                value = None
            yield file.tell(), value


def to_lines(values: Iterable[Any], ensure_ascii: bool = True, allow_nan: bool = True) -> str:
    """Return values as JSON lines, each with its end; the other arguments are those of `json.dumps`.

    Raises:
        ValueError: A number is not finite, and `allow_nan` is False.
    """
    return "".join(json.dumps(value, ensure_ascii=ensure_ascii, allow_nan=allow_nan) + "\n" for value in values)


def append_lines(path: Path, values: Iterable[Any]) -> None:
    """Add values to the end of a log, all or none, and hand them to the system at once: a process may be killed.

    The file is made where it is absent, but for no values.

    Raises:
        OSError: The file cannot be written, on a full disk say; it is as it was.
        ValueError: A number is not finite.
    """
    data = to_lines(values, allow_nan=False).encode()
    if not data:
        return
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError as error:
            file.truncate(end)
            error.filename = error.filename or str(path)
            raise


def cut_torn_line(path: Path) -> None:
    """Cut off a last line without an end, so that it does not swallow the next one; an absent file is made."""
    path.touch()
    content = path.read_bytes()
    # One call of the system, which is done or not.
    os.truncate(path, content.rfind(b"\n") + 1)
