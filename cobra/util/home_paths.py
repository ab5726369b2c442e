"""Home directories in paths: `~` is expanded also where no shell has done it."""

import os
from typing import Annotated, Any

from cobra.util.errors import UserError

# A flag of text that may be a path: it is given through :func:`expand_home`. Other text arrives as it was typed.
PathText = Annotated[str, "path"]


def is_path(kind: Any) -> bool:
    """Return True if a type is :data:`PathText`, as `typing.get_type_hints` gives it with `include_extras`."""
    return "path" in getattr(kind, "__metadata__", ())


def expand_home(path: str, flag: str) -> str:
    """Put the home directory of this user (`~`) or another (`~name`) in the place of a path's beginning.

    A shell leaves `--flag=~/data` and `'[~/rows.json, ~/images]'` as they are. `flag` is its name, for the error.

    Raises:
        UserError: There is no such home directory, and no file of that name either.
    """
    expanded, home = os.path.expanduser(path), path.split("/")[0]
    if path.startswith("~") and not os.path.isabs(expanded) and not os.path.lexists(home):
        raise UserError(
            f"--{flag} {path}: there is no home directory {home}; write the whole path (./{path} for a file whose name "
            "begins so)"
        )
    return expanded
