"""Files that are made once from an annotation file and found again by every process and later run."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from cobra.util.cache import cache_folders, takes_files
from cobra.util.errors import UserError
from cobra.util.mounts import LACKING

T = TypeVar("T")


def cached(annotation_file: Path, ending: str, load: Callable[[Path], T], build: Callable[[Path], None]) -> T:
    """Load a file that belongs to an annotation file; build it first where it is absent, stale or damaged.

    It lies beside the annotation file under a hidden name, or, where that cannot be written, in a folder of
    :func:`cobra.util.cache.cache_folders`. Of several processes one builds while the others wait.

    Args:
        annotation_file: The annotation file.
        ending: Of the name.
        load: Maps or reads the file at a path; raises any error where it is not whole or not of the annotation file's
            present state.
        build: Writes the file at a path, atomically.

    Raises:
        UserError: The file cannot be written anywhere; or what `build` raises.
    """
    path = Path(os.path.abspath(annotation_file))
    beside = path.parent / f".{path.name}{ending}"
    identity = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    found = _loaded(beside, load)
    if found is not None:
        return found
    elsewhere = (folder / f"{identity}-{path.name}{ending}" for folder in cache_folders())
    problems = []
    for place in chain([beside], elsewhere):
        found = _loaded(place, load)
        if found is not None:
            return found
        try:
            return _made(place, load, build)
        except OSError as error:
            problems.append(f"{place} ({error.strerror or error})")
    raise UserError(
        f"what is made once from {annotation_file} cannot be written to {' or '.join(problems)}: make room, or let "
        "XDG_CACHE_HOME name a folder that takes files"
    )


def _made(place: Path, load: Callable[[Path], T], build: Callable[[Path], None]) -> T:
    """Build a file and load it, unless another process has built it meanwhile.

    Raises:
        OSError: The file cannot be written there, or not be mapped.
    """
    if not takes_files(place.parent):
        raise OSError(errno.EACCES, "takes no files", str(place))
    with _alone(place):
        found = _loaded(place, load)
        if found is not None:
            return found
        build(place)
    return load(place)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Wait until no other process builds a file; where the file system has no locks, several may, each its own."""
    lock = FileLock(f"{place}.lock")
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in LACKING:
            raise
    try:
        yield
    finally:
        lock.release()


def watch(items: Iterable[T], description: str) -> Iterable[T]:
    """Return the items, with a bar on the error stream as they are gone through, where that is a terminal."""
    console = Console(stderr=True)
    return track(items, escape(description), console=console, transient=True, disable=not console.is_terminal)


def _loaded(place: Path, load: Callable[[Path], T]) -> T | None:
    if not place.is_file():
        return None
    try:
        return load(place)
    # Damaged files raise errors of almost any kind; a fault of `load` itself shows once the file is built again.
    except Exception:
        return None
