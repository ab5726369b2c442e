"""Programs of `cobra-vlm`, one module each; the scripts of a checkout start the same ones.

Each module defines `COMMAND`. None imports torch before its flags are read.
"""

from importlib import import_module

from cobra.commands.base import Command

NAMES = (
    *("demo", "doctor", "fetch", "preprocess", "mix", "prepare", "check", "train", "benchmark", "study"),
    *("generate", "chat", "serve", "export", "completion"),
)


def find_command(name: str) -> Command:
    """Return a command of `NAMES`."""
    command: Command = import_module(f"cobra.commands.{name}").COMMAND
    return command
