"""Modules outside the package that register data sets, models, objectives, metrics or tasks for the scripts."""

import importlib
import os

from cobra.util.errors import UserError

VARIABLE = "COBRA_EXTENSIONS"


def import_extensions() -> None:
    """Import the modules that the variable names, `my_rows,my_tower`; they lie where Python looks (`PYTHONPATH`).

    Raises:
        UserError: There is no module of that name.
    """
    for name in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            # One that the module itself lacks is its own affair.
            if error.name != name.split(".")[0]:
                raise
            raise UserError(
                f"{VARIABLE} names {name!r}, and there is no such module: give modules with commas between them, and "
                "their folder in PYTHONPATH"
            ) from error
