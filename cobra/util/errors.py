"""Errors that a user can act on."""

import difflib
import errno
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from cobra.util.printable import printable

Value = TypeVar("Value")

# Remedies by the system's error.
_REMEDIES = {
    errno.ENOSPC: "make room, or give a folder on another disk",
    errno.EDQUOT: "delete files of yours there, or give a folder on another disk",
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM), "give a folder that takes files, or the right to write there"
    ),
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


def lookup(registry: Mapping[str, Value], name: str, what: str) -> Value:
    """Return the entry of a registry, or raise a UserError as :func:`check_known` does."""
    check_known(name, registry, what)
    return registry[name]


def check_known(names: str | Collection[str], known: Collection[str], what: str) -> None:
    """Refuse names that are not among the known ones; `what` is their kind, for the error: `--format`.

    Raises:
        UserError: A name is unknown; all known ones are listed, and the nearest of them is proposed.
    """
    unknown = [name for name in ([names] if isinstance(names, str) else names) if name not in known]
    if unknown:
        raise UserError(f"{what} {', '.join(map(repr, unknown))} is unknown; {known_ones(known, unknown[0])}")


def known_ones(known: Collection[str], name: str) -> str:
    """Return the end of an error about an unknown name: the names to choose from, and the nearest of them."""
    nearest = difflib.get_close_matches(name, known, 1)
    return f"the known ones are: {', '.join(known)}{f'. Did you mean {nearest[0]}?' if nearest else ''}"


def check_values(checks: Mapping[str, tuple[object, bool, str]], prefix: str = "") -> None:
    """Raise a UserError for the first value that makes no sense.

    Args:
        checks: Flag's name -> (value, True if it makes sense, the values that do, as in `at least 1`).
        prefix: Beginning of the flags' names.
    """
    for name, (value, is_good, expected) in checks.items():
        if not is_good:
            raise UserError(f"--{prefix}{name} is {value} and must be {expected}")


def missing_extra(package: str, extra: str, purpose: str) -> UserError:
    """Build the error for an optional package that is needed and not installed.

    Args:
        package: The package's name on PyPI, e.g. ``wandb``.
        extra: The extra of this project that installs it, e.g. ``tracking``.
        purpose: Its user, as the subject of the sentence, e.g. ``The wandb tracker``.
    """
    return UserError(f"{purpose} needs the package {package}, which is not installed: pip install 'cobra-vlm[{extra}]'")


def file_problem(error: OSError) -> str | None:
    """Describe what the system has said of a file, with what helps; None where the error is of no file."""
    remedy = _REMEDIES.get(error.errno or 0)
    if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return None
    name = "a file" if error.filename is None else printable(os.fsdecode(error.filename), 4096)
    tail = "" if remedy is None else f": {remedy}"
    return f"{name} cannot be used ({error.strerror or error}){tail}; what is done is kept"


def os_error_behind(error: BaseException | None) -> OSError | None:
    """Return the first OSError among an error and those that it was raised on, or None."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


@contextmanager
def disk_errors(failure: str) -> Iterator[None]:
    """Turn an OSError raised inside, a full disk first of all, into a UserError with the remedy.

    `failure` is the work that failed, as a clause: `the mix could not be made in data`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{failure}: {error}. Mend that (free some space where the disk is full) and run the same command again; "
            "what is whole is kept"
        ) from error
