"""Cache of files that are made once from an annotation file, for every process and later run."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from cobra.util.cache import cache_folders, takes_files
from cobra.util.errors import UserError
from cobra.util.mounts import LACKING

T = TypeVar("T")


def load_or_build(annotation_file: Path, ending: str, load: Callable[[Path], T], build: Callable[[Path], None]) -> T:
    """Load a file that belongs to an annotation file; build it first where it is absent, stale or damaged.

    It lies beside the annotation file under a hidden name with this ending, or, where that cannot be written, in a
    folder of :func:`cobra.util.cache.cache_folders`. Of several processes one builds, atomically; the others wait.
    `load` raises any error where the file is not whole or not of the annotation file's present state.

    Raises:
        UserError: The file cannot be written anywhere; or what `build` raises.
    """
    rows = Path(os.path.abspath(annotation_file))
    beside = rows.parent / f".{rows.name}{ending}"
    identity = hashlib.sha256(os.fsencode(rows)).hexdigest()[:16]
    elsewhere = (folder / f"{identity}-{rows.name}{ending}" for folder in cache_folders())
    problems = []
    for path in chain([beside], elsewhere):
        if (loaded := _try_load(path, load)) is not None:
            return loaded
        try:
            if not takes_files(path.parent):
                raise OSError(errno.EACCES, "takes no files")
            with _exclusive_access(path):
                # Another process may have built it meanwhile.
                if (loaded := _try_load(path, load)) is not None:
                    return loaded
                build(path)
            return load(path)
        except OSError as error:
            problems.append(f"{path} ({error.strerror or error})")
    raise UserError(
        f"what is made once from {annotation_file} cannot be written to {' or '.join(problems)}: make room, or let "
        "XDG_CACHE_HOME name a folder that takes files"
    )


@contextmanager
def _exclusive_access(path: Path) -> Iterator[None]:
    """Wait until no other process builds a file; where the file system has no locks, several may, each its own."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in LACKING:
            raise
    try:
        yield
    finally:
        lock.release()


def _try_load(path: Path, load: Callable[[Path], T]) -> T | None:
    if not path.is_file():
        return None
    try:
        return load(path)
    # Damaged files raise errors of almost any kind; a fault of `load` itself shows once the file is built again.
    except Exception:
        return None
