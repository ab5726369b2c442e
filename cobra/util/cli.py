"""Run a script: parse a dataclass from the command line, call it, and turn user errors into one paragraph."""

import argparse
import dataclasses
import os
import sys
import time
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import draccus
import yaml
from draccus import ChoiceRegistry
from draccus.utils import CONFIG_ARG, DraccusException

from cobra.util.errors import SharedError, UserError, check_known, file_problem
from cobra.util.extensions import import_extensions
from cobra.util.home_paths import expand_home, is_path
from cobra.util.redaction import print_redacted_traceback, reason, redacted

Config = TypeVar("Config")

# Exit codes: 0 done, 1 the work was done and its result is a failure, 2 the input or configuration is wrong.
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

# torchrun ends all processes once one has ended: those that say nothing let the main one say it first.
_HEAD_START_SECONDS = 1.0

# Stands on both sides of text on its way through draccus; it cannot occur in an argument.
_GUARD = "\x00"
# Characters of a parser's message that are shown.
_LONGEST_ERROR = 4096
# Spellings of null, where a flag of text may be null.
_NULLS = ("null", "None", "none")


class _TextFlag(NamedTuple):
    """A flag whose value is read as it was typed."""

    is_path: bool
    """True where `~` at its beginning, or that of a list's items, is the home directory."""
    is_list: bool = False
    """True where it is a list: YAML's [a, b], or a,b."""
    is_optional: bool = False
    """True where it may be null."""


def run(main: Callable[[Config], int | None], config_class: type[Config], args: Sequence[str] | None = None) -> None:
    """Parse `config_class` from the command line, call `main` with it and exit with its code.

    Every flag is `--name value`; nested fields are `--group.name value`; unknown flags are errors. Modules named by
    `COBRA_EXTENSIONS` are imported first.

    Args:
        main: The program. Its return value is the exit code; None is 0.
        config_class: A dataclass whose fields are the flags; the docstring under a field is its help.
        args: Arguments in place of `sys.argv[1:]`.
    """
    sys.excepthook = print_redacted_traceback
    try:
        import_extensions()
        code = main(parse(config_class, args))
    except (UserError, OSError) as error:
        # A disk that is full, a folder that takes no files: wherever that is met.
        problem = str(error) if isinstance(error, UserError) else file_problem(error)
        if problem is None:
            raise
        _print_problem(problem, isinstance(error, SharedError))
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code or 0)


def _print_problem(problem: str, is_shared: bool) -> None:
    """Print an error; of several processes each says what it met: a bad row lies in the share of one of them."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not is_shared:
        process = "" if rank == "0" else f" (process {rank})"
        print(f"error{process}: {redacted(problem)}", file=sys.stderr, flush=True)
    else:
        time.sleep(_HEAD_START_SECONDS)


def parse(config_class: type[Config], args: Sequence[str] | None = None) -> Config:
    """Parse a dataclass from command-line arguments.

    Raises:
        UserError: A flag, a value or a choice is unknown; the known choices are listed.
    """
    text_flags = _text_flags(config_class)
    arguments = _join_values(sys.argv[1:] if args is None else args, text_flags)
    arguments = [_expand_config_path(argument) for argument in arguments]
    _check_choices(config_class, arguments)
    try:
        arguments += _default_choices(config_class, arguments)
        guarded = [_guard(argument, text_flags) for argument in arguments]
        config = draccus.parse(config_class, args=guarded, exit_on_error=False)
    except (DraccusException, argparse.ArgumentError, OSError, UnicodeError, yaml.YAMLError) as error:
        raise UserError(f"{reason(error, _LONGEST_ERROR).rstrip('.')}. Run with --help for the flags.") from error
    for flag, text in text_flags.items():
        _unguard(config, flag, text)
    _refuse_nulls(config)
    return config


def _check_choices(config_class: type, arguments: Sequence[str]) -> None:
    """Name the known choices when `--<field>.type` is not one of them."""
    hints = typing.get_type_hints(config_class)
    for flag, value in _flag_values(arguments).items():
        name, _, leaf = flag.partition(".")
        kind = hints.get(name)
        if not (isinstance(kind, type) and issubclass(kind, ChoiceRegistry)):
            continue
        known = kind.get_known_choices()
        if leaf == "type":
            check_known(value, known, f"--{flag}")
        if not leaf and value in known:
            raise UserError(f"--{flag} takes no name: choose with --{flag}.type {value}")


def _join_values(arguments: Sequence[str], text_flags: dict[str, _TextFlag]) -> list[str]:
    """Write `--flag value` as `--flag=value`, so that text that looks like a flag is not taken for one."""
    joined: list[str] = []
    waiting: str | None = None
    for argument in arguments:
        if waiting is not None and (waiting in text_flags or not argument.startswith("--")):
            joined[-1] += f"={argument}"
            waiting = None
        else:
            joined.append(argument)
            takes_value = argument.startswith("--") and "=" not in argument and argument != "--help"
            waiting = argument[2:] if takes_value else None
    return joined


def _flag_values(arguments: Sequence[str]) -> dict[str, str]:
    """Return the values of `--flag=value` by flag, of several the last."""
    pairs = (argument[2:].partition("=") for argument in arguments if argument.startswith("--"))
    return {flag: value for flag, equals, value in pairs if equals}


def _default_choices(config_class: type, arguments: Sequence[str]) -> list[str]:
    """Return the `--<field>.type` flags that are implied where only fields of the default choice are given."""
    flags = _flag_values(arguments)
    file = flags.get(CONFIG_ARG)
    values = None if file is None else yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    chosen = values if isinstance(values, dict) else ()
    implied: list[str] = []
    for field in dataclasses.fields(typing.cast(Any, config_class)):
        touched = any(flag.startswith(f"{field.name}.") for flag in flags)
        given = f"{field.name}.type" in flags or field.name in chosen
        if touched and not given and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
            if isinstance(default, ChoiceRegistry):
                implied.append(f"--{field.name}.type={default.get_choice_name(type(default))}")
    return implied


def _text_flags(config_class: type, prefix: str = "") -> dict[str, _TextFlag]:
    """Return every flag whose value is text, a path or a list of them; those of nested fields are `group.name`."""
    flags: dict[str, _TextFlag] = {}
    hints = typing.get_type_hints(config_class, include_extras=True)
    for field in dataclasses.fields(typing.cast(Any, config_class)):
        kind = hints[field.name]
        flag = prefix + field.name
        if dataclasses.is_dataclass(kind):
            flags |= _text_flags(typing.cast(type, kind), f"{flag}.")
            continue
        origin = typing.get_origin(kind)
        members = typing.get_args(kind) if origin in (types.UnionType, typing.Union, tuple, list) else (kind,)
        concrete = [member for member in members if member not in (types.NoneType, ...)]
        if all(member in (str, Path) or is_path(member) for member in concrete):
            named = any(member is Path or is_path(member) for member in concrete)
            flags[flag] = _TextFlag(named, origin in (tuple, list), types.NoneType in members)
    return flags


def _expand_config_path(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return f"{flag}={expand_home(value, CONFIG_ARG)}" if equals and flag == f"--{CONFIG_ARG}" else argument


def _guard(argument: str, text_flags: dict[str, _TextFlag]) -> str:
    """Guard the value of a flag of text from draccus' YAML reading, which makes True of yes and opens `include x`."""
    flag, equals, value = argument.removeprefix("--").partition("=")
    if not (argument.startswith("--") and equals and flag in text_flags):
        return argument
    if text_flags[flag].is_list:
        items = [_quote(item.strip()) for item in value.split(",") if item.strip()]
        return argument if value.lstrip().startswith("[") else f"--{flag}=[{', '.join(items)}]"
    if text_flags[flag].is_optional and value in _NULLS:
        return f"--{flag}=null"
    return f"--{flag}={_quote(_GUARD + value + _GUARD)}"


def _quote(text: str) -> str:
    """Write text as a double-quoted YAML scalar; JSON's would split characters beyond U+FFFF in two."""
    return '"' + "".join(f"\\U{ord(character):08X}" for character in text) + '"'


def _unguard(config: Any, flag: str, text: _TextFlag) -> None:
    """Take the guard off a field of text, and expand the home directory where it is a path; in place."""
    *groups, name = flag.split(".")
    for group in groups:
        config = getattr(config, group)

    def taken(value: Any) -> Any:
        if not isinstance(value, (str, Path)):
            return value
        plain = str(value).removeprefix(_GUARD).removesuffix(_GUARD)
        return type(value)(expand_home(plain, flag) if text.is_path else plain)

    value = getattr(config, name)
    setattr(config, name, type(value)(map(taken, value)) if isinstance(value, (tuple, list)) else taken(value))


def _refuse_nulls(config: Any, prefix: str = "") -> None:
    """Raise a UserError where a field is null that has to have a value; draccus takes null for any type."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flag = f"{prefix}{field.name}"
        if value is None and types.NoneType not in typing.get_args(hints[field.name]):
            raise UserError(f"--{flag} cannot be null. Run with --help for the flags.")
        if dataclasses.is_dataclass(value):
            _refuse_nulls(value, f"{flag}.")
