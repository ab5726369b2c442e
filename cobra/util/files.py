"""Files that are either whole or absent, and JSON read with errors that name the line."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cobra.util.errors import UserError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it into place.

    The parent folder is created. On an exception the temporary file is removed and `path` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        # mkstemp makes files private; a finished file gets the permissions that open() would have given it.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically; a trailing newline is added."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def append_bytes(path: Path | str, data: bytes) -> None:
    """Add bytes to the end of a file, all or none, and hand them to the system at once: a process may be killed.

    Raises:
        OSError: The file cannot be written, on a full disk say; it is as it was.
    """
    with Path(path).open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(end)
            raise


def read_json(path: Path | str, what: str, remedy: str = "") -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        what: What the file is, for the error, e.g. ``the annotation file``.
        remedy: A closing sentence for the errors, e.g. the command that makes the file.

    Raises:
        UserError: The file is absent, is not UTF-8, or is not JSON (with line and column).
    """
    path = Path(path)
    tail = f" {remedy}" if remedy else ""
    if not path.is_file():
        raise UserError(f"{what[:1].upper()}{what[1:]} does not exist: {path}.{tail}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} ({what}) is not UTF-8 text: {error.reason} at byte {error.start}.{tail}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} ({what}) is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}.{tail}"
        ) from error
    except RecursionError as error:
        raise UserError(f"{path} ({what}) holds lists or objects nested too deeply to be read.{tail}") from error
    except ValueError as error:
        # A number of thousands of digits, which Python refuses to convert.
        raise UserError(f"{path} ({what}) cannot be read as JSON: {error}.{tail}") from error


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits, read in blocks of constant size."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
