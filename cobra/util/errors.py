"""Errors that a user can act on."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cobra.util.printable import shown

_OTHER_FOLDER = "give a folder that takes files, or the right to write there"
# What helps, by what the system says.
_REMEDIES = {
    errno.ENOSPC: "make room, or give a folder on another disk",
    errno.EDQUOT: "delete files of yours there, or give a folder on another disk",
    errno.EROFS: _OTHER_FOLDER,
    errno.EACCES: _OTHER_FOLDER,
    errno.EPERM: _OTHER_FOLDER,
    errno.EFBIG: "give a folder on a disk that takes files of that size, or raise the limit (ulimit -f)",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "give another folder: a part of that path is a file",
    errno.EEXIST: "give another name: there is a file where a folder is needed",
    errno.EISDIR: "give another name, or move that folder away",
    errno.ENOENT: "look whether it has been deleted or unmounted meanwhile",
    errno.ESTALE: "look whether its network disk is mounted",
    errno.EIO: "look after that disk (dmesg)",
}


class UserError(ValueError):
    """Something about the input, the configuration or the machine that the user can mend.

    The message is one paragraph: what was found and where (file, line, row id), what was expected, and the command
    or flag that fixes it. Scripts print it without a traceback and exit with code 2 (:func:`cobra.util.cli.run`).
    """


class SharedError(UserError):
    """One that all processes of a run end with; the main process alone says it."""


def missing_extra(package: str, extra: str, purpose: str) -> UserError:
    """Build the error for an optional package that is needed and not installed.

    Args:
        package: The package's name on PyPI, e.g. ``wandb``.
        extra: The extra of this project that installs it, e.g. ``tracking``.
        purpose: What it is needed for, as the subject of the sentence, e.g. ``The wandb tracker``.
    """
    return UserError(f"{purpose} needs the package {package}, which is not installed: pip install 'cobra-vlm[{extra}]'")


def file_problem(error: OSError) -> str | None:
    """Describe what the system has said of a file, with what helps; None where the error is of no file."""
    remedy = _REMEDIES.get(error.errno or 0)
    if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return None
    name = "a file" if error.filename is None else shown(os.fsdecode(error.filename), 4096)
    reason = error.strerror or str(error)
    return f"{name} cannot be used ({reason}){'' if remedy is None else f': {remedy}'}; what is done is kept"


@contextmanager
def disk_errors(failure: str) -> Iterator[None]:
    """Turn an OSError raised inside, a full disk first of all, into a UserError with the remedy.

    Args:
        failure: What did not come about, as a clause: `the mix could not be made in data`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{failure}: {error}. Mend that (free some space where the disk is full) and run the same command again; "
            "what is whole is kept"
        ) from error
