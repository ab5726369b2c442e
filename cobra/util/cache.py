"""Cache folders, also for a user who has neither a home nor a name."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def provide_cache() -> None:
    """Give libraries a cache folder where there is no home: they would make one called `~`."""
    if not os.path.isabs(os.path.expanduser("~")) and (folder := _private_folder()):
        for name in ("XDG_CACHE_HOME", "TRITON_HOME"):
            os.environ.setdefault(name, str(folder))


def cache_folders() -> Iterator[Path]:
    """Yield folders to try in turn: `cobra` in the user's cache folder, then one in the folder for temporary files.

    The first is left out where there is no home, and may not be there yet; the second where it is not the user's alone.
    """
    home = os.path.expanduser("~")
    user = os.environ.get("XDG_CACHE_HOME") or (os.path.join(home, ".cache") if os.path.isabs(home) else None)
    if user is not None:
        yield Path(user) / "cobra"
    if temporary := _private_folder():
        yield temporary


def _private_folder() -> Path | None:
    """Make a folder that others cannot write to; None where there is none, or another user has taken its name."""
    try:
        folder = Path(tempfile.gettempdir()) / f"cobra-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & _OTHERS
    return folder if mine else None


def takes_files(folder: Path) -> bool:
    """Return True if files can be made in a folder; it is created where it can be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
