"""Files that are made once from an annotation file and found again by every process and later run."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from cobra.util.errors import UserError

T = TypeVar("T")


def file_key(path: Path) -> str:
    """Return what tells one state of a file from another: its size and time of change.

    Raises:
        UserError: There is no such file.
    """
    if not path.is_file():
        raise UserError(f"The annotation file does not exist: {path}")
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


def cached(annotation_file: Path, ending: str, load: Callable[[Path], T], build: Callable[[Path], None]) -> T:
    """Load a file that belongs to an annotation file; build it first where it is absent, stale or damaged.

    It lies beside the annotation file under a hidden name, or, where that folder cannot be written to, in `cobra` in
    the user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`). Of several processes one builds while the others wait.

    Args:
        annotation_file: The annotation file.
        ending: Of the name.
        load: Maps or reads the file at a path; raises any error where it is not whole or not of the annotation file's
            present state.
        build: Writes the file at a path, atomically.

    Raises:
        UserError: The file cannot be written; or what `build` raises.
    """
    places = _places(annotation_file, ending)
    for place in places:
        found = _loaded(place, load)
        if found is not None:
            return found
    try:
        place = next(place for place in places if _is_writable(place.parent))
        with FileLock(f"{place}.lock"):
            found = _loaded(place, load)
            if found is None:
                build(place)
    except (StopIteration, OSError) as error:
        raise UserError(
            f"what is made once from {annotation_file} cannot be written to {' or '.join(map(str, places))}"
            f"{f' ({error})' if str(error) else ''}: make room, or let XDG_CACHE_HOME name a folder that takes files"
        ) from error
    return load(place) if found is None else found


def watch(items: Iterable[T], description: str) -> Iterable[T]:
    """Return the items, with a bar on the error stream as they are gone through, where that is a terminal."""
    console = Console(stderr=True)
    return track(items, escape(description), console=console, transient=True, disable=not console.is_terminal)


def _places(annotation_file: Path, ending: str) -> list[Path]:
    path = Path(os.path.abspath(annotation_file))
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cobra"
    identity = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return [path.parent / f".{path.name}{ending}", user / f"{identity}-{path.name}{ending}"]


def _loaded(place: Path, load: Callable[[Path], T]) -> T | None:
    if not place.is_file():
        return None
    try:
        return load(place)
    # Damaged files raise errors of almost any kind; a fault of `load` itself shows once the file is built again.
    except Exception:
        return None


def _is_writable(folder: Path) -> bool:
    """Return whether files can be made in a folder; it is created where it can be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
