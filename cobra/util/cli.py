"""Running a script: parse a dataclass from the command line, call it, and turn user errors into one paragraph."""

import argparse
import dataclasses
import json
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import draccus
from draccus import ChoiceRegistry
from draccus.utils import DraccusException

from cobra.util.errors import UserError

Config = TypeVar("Config")

# Exit codes: 0 done, 1 the work was done and its result is a failure, 2 the input or configuration is wrong.
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

# Marks text on its way through draccus; it cannot occur in an argument.
_GUARD = "\x00"


def run(main: Callable[[Config], int | None], config_class: type[Config], args: Sequence[str] | None = None) -> None:
    """Parse `config_class` from the command line, call `main` with it and exit with its code.

    Every flag is `--name value`; nested fields are `--group.name value`; unknown flags are errors.

    Args:
        main: The program. Its return value is the exit code; None is 0.
        config_class: A dataclass whose fields are the flags; the docstring under a field is its help.
        args: Arguments in place of `sys.argv[1:]`.
    """
    try:
        config = parse(config_class, args)
        code = main(config)
    except UserError as error:
        # Under torchrun every rank fails alike: one paragraph is enough.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code or 0)


def parse(config_class: type[Config], args: Sequence[str] | None = None) -> Config:
    """Parse a dataclass from command-line arguments.

    Raises:
        UserError: A flag, a value or a choice is unknown; the known choices are listed.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    _check_choices(config_class, arguments)
    arguments += _default_choices(config_class, arguments)
    text_flags = _text_flags(config_class)
    try:
        config = draccus.parse(config_class, args=_guard_text(arguments, text_flags), exit_on_error=False)
    except (DraccusException, argparse.ArgumentError) as error:
        raise UserError(f"{_one_line(error)}. Run with --help for the flags.") from error
    for name in text_flags:
        value = getattr(config, name)
        if value is not None:
            setattr(config, name, type(value)(str(value).removeprefix(_GUARD)))
    return config


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _check_choices(config_class: type, arguments: Sequence[str]) -> None:
    """Name the known choices when `--<field>.type` is not one of them."""
    hints = typing.get_type_hints(config_class)
    for flag, value in _flag_values(arguments):
        name, _, leaf = flag.partition(".")
        kind = hints.get(name)
        if leaf == "type" and isinstance(kind, type) and issubclass(kind, ChoiceRegistry):
            known = kind.get_known_choices()
            if value not in known:
                raise UserError(f"--{flag} {value!r} is not a known {name}; the known ones are: {', '.join(known)}")


def _flag_values(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return the (flag, value) pairs of `--flag value` and `--flag=value`."""
    pairs = []
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            flag, equals, value = argument[2:].partition("=")
            if equals:
                pairs.append((flag, value))
            elif position + 1 < len(arguments):
                pairs.append((flag, arguments[position + 1]))
    return pairs


def _default_choices(config_class: type, arguments: Sequence[str]) -> list[str]:
    """Return the `--<field>.type` flags that are implied where only fields of the default choice are given."""
    flags = [flag for flag, _ in _flag_values(arguments)]
    implied: list[str] = []
    for field in dataclasses.fields(typing.cast(Any, config_class)):
        touched = any(flag.startswith(f"{field.name}.") for flag in flags)
        if touched and f"{field.name}.type" not in flags and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
            if isinstance(default, ChoiceRegistry):
                implied += [f"--{field.name}.type", default.get_choice_name(type(default))]
    return implied


def _guard_text(arguments: Sequence[str], text_flags: dict[str, bool]) -> list[str]:
    """Guard the values of text and path flags, so that draccus' YAML reading leaves them as they were typed.

    Without this `--prompt yes` arrives as 'True', `--prompt "What: a?"` as a mapping in text form, and
    `--prompt "include all"` is taken for the name of a file.
    """
    guarded: list[str] = []
    expecting: str | None = None
    for argument in arguments:
        if expecting is not None:
            argument = _guard(argument, text_flags[expecting])
            expecting = None
        elif argument.startswith("--"):
            flag, equals, value = argument[2:].partition("=")
            if flag in text_flags and equals:
                argument = f"--{flag}={_guard(value, text_flags[flag])}"
            elif flag in text_flags:
                expecting = flag
        guarded.append(argument)
    return guarded


def _guard(value: str, optional: bool) -> str:
    return value if optional and value in ("null", "None", "none") else json.dumps(_GUARD + value)


def _text_flags(config_class: type) -> dict[str, bool]:
    """Map each top-level flag of text or a path to whether it may be null."""
    flags = {}
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(typing.cast(Any, config_class)):
        kind = hints[field.name]
        members = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        concrete = [member for member in members if member is not type(None)]
        if concrete and all(member in (str, Path) for member in concrete):
            flags[field.name] = len(concrete) < len(members)
    return flags
