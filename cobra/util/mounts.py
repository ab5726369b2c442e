"""Flush, map, replace and lock files also where a file system cannot: mounts of object stores (GCS FUSE), CIFS."""

import errno
import fcntl
import mmap
import os
import tempfile
from pathlib import Path
from typing import IO

# Errors of a file system that cannot do a thing at all, such as mounts of object stores (GCS FUSE) and CIFS.
LACKING = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EPERM, errno.ENODEV)
# Errors of one that does not replace a file which is there, or which somebody has open.
_OCCUPIED = (errno.EEXIST, errno.EACCES, errno.EPERM, errno.EBUSY, errno.ETXTBSY)


def flush(handle: int) -> None:
    """Flush an open file or folder to disk, as far as its file system can.

    Raises:
        OSError: It can, and has failed: a network's disk is full, say.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in LACKING:
            raise


def can_flush(folder: Path) -> bool:
    """Return True if files in a folder can be flushed to disk, for writers that take it as a failure where not."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno not in LACKING
    return True


def can_map(path: Path) -> bool:
    """Return True if a file can be mapped into memory; some network file systems have nothing of the kind."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
            return True
    except OSError as error:
        return error.errno not in LACKING
    except ValueError:
        # An empty file.
        return True


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk as :func:`flush` does, where its file system lets folders be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        flush(handle)
    finally:
        os.close(handle)


def replace(source: Path, target: Path) -> None:
    """Give a file the name of another, which it takes the place of.

    Where the file system does not do that in one step while the other is open, the other is deleted first: a kill just
    then leaves neither.
    """
    try:
        source.replace(target)
    except OSError as error:
        if error.errno not in _OCCUPIED or not target.is_file():
            raise
        target.unlink()
        source.rename(target)


def lock_file(file: IO[str], operation: int) -> None:
    """Wait for a lock on an open file (`fcntl.flock`), where its file system has locks."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in LACKING:
            raise
