"""Atomic writes, text and JSON read with errors that name the line, and kinds of files told by their content."""

import codecs
import errno
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cobra.util.errors import UserError
from cobra.util.mounts import flush, replace

# The mark of UTF-16 begins that of UTF-32.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINES = (".jsonl", ".ndjson")
# Ends the names of files and folders that are being written.
UNFINISHED = ".tmp"

# First bytes of files that are often found in another's place, in lower case, with what to do about them.
_KINDS = (
    ((b"<!doctype html", b"<html", b"<head", b"<body"), "a web page (HTML): its download has failed"),
    ((b"version https://git-lfs",), "a pointer of Git LFS: fetch the file itself with `git lfs pull`"),
    ((b"pk\x03\x04", b"\x1f\x8b"), "a packed archive: unpack it"),
)

# Errors of a file system that takes no hidden files (`veto files` of Samba).
_NO_HIDDEN = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOENT)
# Errors of writing to an open file.
_UNNAMED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# Characters of `tempfile` in a name.
_RANDOM = 8
# Bytes of a file's name that its temporary file bears too: names end at 255.
_NAMED_BYTES = 200


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it into place.

    The parent folder is created. On an exception `path` is left as it was. What a file system cannot do beside that
    (set permissions, flush, replace a file that is open) does not fail the work.

    Raises:
        OSError: The file cannot be written; it names `path` where the system names no file.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            yield temporary
            with temporary.open("rb+") as written:
                flush(written.fileno())
            # mkstemp makes files private; a finished file gets the permissions that open() would have given it.
            umask = os.umask(0)
            os.umask(umask)
            with suppress(OSError):
                temporary.chmod(0o666 & ~umask)
            replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        # What a write raises names no file.
        if error.errno in _UNNAMED and error.filename is None:
            error.filename = str(path)
        raise


def _temporary(path: Path) -> Path:
    """Make an empty file beside a path, hidden where the file system takes hidden files."""
    name = os.fsencode(path.name)[:_NAMED_BYTES].decode(errors="ignore")
    try:
        handle, made = tempfile.mkstemp(UNFINISHED, f".{name}.", path.parent)
    except OSError as error:
        if error.errno not in _NO_HIDDEN:
            raise
        handle, made = tempfile.mkstemp(UNFINISHED, f"{name}.", path.parent)
    os.close(handle)
    return Path(made)


def unfinished_files(folder: Path) -> Iterator[Path]:
    """Yield the files that killed processes were writing by :func:`atomic_path`, for who holds the folder alone."""
    for path in folder.glob(f"*{UNFINISHED}"):
        if path.is_file() and (path.name.startswith(".") or len(path.stem.rpartition(".")[2]) == _RANDOM):
            yield path


def refuse_link(path: Path) -> None:
    """Raise a UserError if a file that is written in place is a link, which may lead anywhere, or no plain file."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        problem = "is a link, or no plain file, and what it leads to would be changed"
        raise UserError(f"{path} {problem}: delete it, or put the file in its place")


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically; a trailing newline is added."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def encoding_of(beginning: bytes) -> str:
    """Return the encoding that a file's byte order mark names, which reading takes off; UTF-8 where there is none."""
    return next((encoding for mark, encoding in _MARKS if beginning.startswith(mark)), "utf-8")


def read_text(path: Path | str, what: str, remedy: str = "") -> str:
    """Read a text file: UTF-8, or UTF-16 or UTF-32 with a byte order mark, which is no part of the text.

    For the errors, `what` names the file, as in `the annotation file`, and `remedy` is a closing sentence, such as
    the command that makes it.

    Raises:
        UserError: The file is absent, or is no text in these encodings.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_file(path, what, remedy)
    content = path.read_bytes()
    return decode(content, encoding_of(content), f"{path} ({what})", remedy)


def missing_file(path: Path, what: str, remedy: str = "") -> UserError:
    """Return the error that a file is absent; the arguments are those of :func:`read_text`."""
    problem = "is a folder, and a file was expected" if path.is_dir() else "does not exist"
    return UserError(f"{what[:1].upper()}{what[1:]} {problem}: {path}. {remedy}".rstrip())


def decode(content: bytes, encoding: str, where: str, remedy: str = "") -> str:
    """Decode a file's bytes, its mark included; `where` names the source, and `remedy` closes the error.

    Raises:
        UserError: They are not in this encoding.
    """
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        problem = f"not {encoding.removesuffix('-sig').upper()} text: {error.reason} at byte {error.start}"
        raise UserError(f"{where} is {problem}. {remedy}".rstrip()) from error


def read_json(path: Path | str, what: str, remedy: str = "", lines: bool = False) -> Any:
    """Read a JSON file, encoded as :func:`read_text` takes it; the other arguments are its own.

    With `lines` it may be JSON lines, whatever it is called: they are the list of their values, a single one where the
    file is named so.

    Raises:
        UserError: The file is absent, is no text, or is not JSON (with line and column).
    """
    path = Path(path)
    text = read_text(path, what, remedy)
    if lines and not text.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            values = [json.loads(line) for line in text.split("\n") if line.strip()]
            if values:
                return values if len(values) > 1 or path.suffix.lower() in _LINES else values[0]
    return parse_json(text, f"{path} ({what})", remedy)


def parse_json(text: str, where: str, remedy: str = "") -> Any:
    """Parse a JSON value, with white space around it; `where` names the source, and `remedy` closes the error.

    Raises:
        UserError: The text is not JSON (with column, and line where there are several), or not to be read.
    """
    tail = f" {remedy}" if remedy else ""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise UserError(f"{where} is not valid JSON: {position}: {_problem(text, error)}.{tail}") from error
    except RecursionError as error:
        raise UserError(f"{where} holds lists or objects nested too deeply to be read.{tail}") from error
    except ValueError as error:
        # A number of thousands of digits, which Python refuses to convert.
        raise UserError(f"{where} cannot be read as JSON: {error}.{tail}") from error


def _problem(text: str, error: json.JSONDecodeError) -> str:
    """Return what is wrong with a text that is not JSON; the parser's own word where none is plainer."""
    if not text.strip():
        return "nothing is there"
    if "\0" in text[:4]:
        return "zero bytes between the characters, as UTF-16 without a byte order mark has them; save it as UTF-8"
    if error.msg == "Extra data":
        return "a second value begins where the end was expected (one value a line is JSON lines)"
    if text[error.pos : error.pos + 1] in ("]", "}") and text[: error.pos].rstrip().endswith(","):
        return "a comma stands before the closing bracket"
    if error.pos >= len(text.rstrip()):
        return "it ends in the middle of a value"
    return error.msg


def kind_of_content(beginning: bytes) -> str:
    """Return what a file is by its first 512 bytes or more, and what to do, as in `_KINDS`; empty for other kinds."""
    if beginning[257:262] == b"ustar":
        return "a packed archive: unpack it"
    start = beginning.lower().lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((kind for beginnings, kind in _KINDS if start.startswith(beginnings)), "")


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits, read in blocks of constant size."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_folder(module: str) -> Path | None:
    """Return the folder of an installed package, found without running its code; None where it is not installed."""
    spec = importlib.util.find_spec(module)
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None
