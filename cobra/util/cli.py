"""Run a program: parse a dataclass from the command line, call it, and turn user errors into one paragraph."""

import argparse
import dataclasses
import json
import os
import re
import select
import shutil
import sys
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import draccus
import yaml
from draccus import ChoiceRegistry
from draccus.utils import CONFIG_ARG, DraccusException

from cobra.util.errors import SharedError, UserError, check_known, file_problem
from cobra.util.extensions import import_extensions
from cobra.util.flags import HELP, Flag, Kind, flags_of, read_arguments
from cobra.util.help_text import NO_USAGE, Usage, help_text
from cobra.util.home_paths import expand_home
from cobra.util.program import as_installed
from cobra.util.redaction import print_redacted_traceback, reason, redacted

Config = TypeVar("Config")

# Exit codes: 0 done, 1 the work was done and its result is a failure, 2 the input or configuration is wrong.
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
# That of a shell for a program whose reader has gone.
_EXIT_PIPE = 141

# torchrun ends all processes once one has ended: those that say nothing let the main one say it first.
_HEAD_START_SECONDS = 1.0

# Stands on both sides of text on its way through draccus; it cannot occur in an argument.
_GUARD = "\x00"
# Characters of a parser's message that are shown.
_LONGEST_ERROR = 4096
_CHOICE = re.compile(r"--(\w+)\.type(?:=(.*))?", re.DOTALL)


def run(
    main: Callable[[Config], int | None],
    config_class: type[Config],
    args: Sequence[str] | None = None,
    usage: Usage = NO_USAGE,
) -> None:
    """Parse `config_class` from the command line, call `main` with it and exit with its code.

    Every flag is `--name value`, or `--name` where it is true or false; nested fields are `--group.name value`;
    unknown flags are errors. Modules named by `COBRA_EXTENSIONS` are imported first.

    Args:
        main: The program. Its return value is the exit code; None is 0.
        config_class: A dataclass whose fields are the flags; the docstring under a field is its help.
        args: Arguments in place of `sys.argv[1:]`.
        usage: Name and first screen of its help.
    """
    sys.excepthook = print_redacted_traceback
    # Tokenizers warn at every fork of a data worker otherwise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        import_extensions()
        if asks_for_help(arguments):
            everything = "all" in (arguments[-1], *arguments[1:2])
            flags = flags_of(config_class, _chosen(arguments))
            print(help_text(usage, config_class.__doc__ or "", flags, everything, _width()), flush=True)
            sys.exit(0)
        config = parse(config_class, arguments, usage.positional)
        _widen_tables()
        code = main(config)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_reader_gone():
            raise
        # `head` has seen enough. What is left must not be flushed into its pipe at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_EXIT_PIPE)
    except (UserError, OSError) as error:
        # A disk that is full, a folder that takes no files: wherever that is met.
        problem = str(error) if isinstance(error, UserError) else file_problem(error)
        if problem is None:
            raise
        _print_problem(redacted(as_installed(problem)), isinstance(error, SharedError))
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code or 0)


def _is_reader_gone() -> bool:
    """Return True if standard output is a pipe that nobody reads any more."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Return True where `--help`, or it and `all`, comes first or last; elsewhere it may be a flag's text."""
    return any(argument in HELP for argument in (*arguments[:1], *arguments[-1:])) or (
        arguments[-1:] == ["all"] and arguments[-2] in HELP
    )


def _widen_tables() -> None:
    """Give tables 120 columns where no terminal says how many there are: rich would take 80."""
    streams = (sys.__stdin__, sys.__stdout__, sys.__stderr__)
    if not any(stream is not None and not stream.closed and stream.isatty() for stream in streams):
        os.environ.setdefault("COLUMNS", "120")


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 120)


def _print_problem(problem: str, is_shared: bool) -> None:
    """Print an error; of several processes each says what it met: a bad row lies in the share of one of them."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not is_shared:
        process = "" if rank == "0" else f" (process {rank})"
        print(f"error{process}: {problem}", file=sys.stderr, flush=True)
    else:
        time.sleep(_HEAD_START_SECONDS)
    _tell_torchrun(problem)


def _tell_torchrun(problem: str) -> None:
    """Put an error into the report that torchrun prints once its processes have ended, where it started this one."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        # torchrun shows the call stack of a message.
        stack = {"py_callstack": problem, "timestamp": str(int(time.time()))}
        content = {"message": {"message": problem, "extraInfo": stack}}
        with suppress(OSError):
            Path(file).write_text(json.dumps(content), encoding="utf-8")


def parse(config_class: type[Config], args: Sequence[str], positional: str = "") -> Config:
    """Parse a dataclass from command-line arguments.

    Args:
        config_class: The dataclass.
        args: The arguments.
        positional: Flag whose value may come first, without its name.

    Raises:
        UserError: A flag, a value or a choice is unknown; the nearest, or the known choices, are named.
    """
    arguments = list(args)
    if positional and arguments and not arguments[0].startswith("--"):
        arguments.insert(0, f"--{positional}")
    flags = flags_of(config_class, _chosen(arguments))
    values: dict[str, str] = {}
    for flag, value in read_arguments(arguments, flags):
        values[flag.name] = _encoded(flag, value, config_class)
    _refuse_missing(config_class, values)
    try:
        values |= _default_choices(config_class, values)
        config = draccus.parse(
            config_class, args=[f"--{name}={value}" for name, value in values.items()], exit_on_error=False
        )
    except OSError as error:
        raise UserError(f"--config_path {error.filename} cannot be read ({error.strerror})") from error
    except (DraccusException, argparse.ArgumentError, UnicodeError, yaml.YAMLError) as error:
        raise UserError(f"{reason(error, _LONGEST_ERROR).rstrip('.')}. Run with --help for the flags.") from error
    for flag in flags.values():
        if flag.of_text and flag.kind is not Kind.FILE:
            _unguard(config, flag)
    _refuse_nulls(config)
    return config


def _refuse_missing(config_class: type, values: Mapping[str, str]) -> None:
    """Raise a UserError where fields without a default have no value; a file of flags may hold them."""
    unset = dataclasses.MISSING
    names = [
        f"--{field.name}"
        for field in dataclasses.fields(typing.cast(Any, config_class))
        if field.default is unset and field.default_factory is unset and field.name not in values
    ]
    if names and CONFIG_ARG not in values:
        raise UserError(f"{' and '.join(names)} must be given; --help shows examples")


def _chosen(arguments: Sequence[str]) -> dict[str, str]:
    """Return the choices that `--<group>.type` names, by group, of several the last; text that looks so may be in."""
    chosen = {}
    for argument, following in pairwise([*arguments, ""]):
        if match := _CHOICE.fullmatch(argument):
            chosen[match[1]] = following if match[2] is None else match[2]
    return chosen


def _encoded(flag: Flag, value: str | list[str], config_class: type) -> str:
    """Return a value as draccus reads it, text guarded so that it arrives as it was typed.

    Without this `--prompt yes` arrives as 'True', `--prompt "What: a?"` as a mapping in text form, and
    `--prompt "include all"` is taken for the name of a file.

    Raises:
        UserError: The choice is unknown, or stands where a file is expected.
    """
    if flag.choices:
        check_known(value, flag.choices, f"--{flag.name}")
    if flag.kind is Kind.LIST:
        return f"[{', '.join(_quote(item) if flag.of_text else item for item in value)}]"
    text = typing.cast(str, value)
    if flag.kind is Kind.FILE:
        kind = typing.get_type_hints(config_class).get(flag.name)
        if isinstance(kind, type) and issubclass(kind, ChoiceRegistry) and text in kind.get_known_choices():
            raise UserError(f"--{flag.name} takes no name: choose with --{flag.name}.type {text}")
        return expand_home(text, flag.name)
    guarded = flag.of_text and not (flag.optional and text == "null")
    return _quote(_GUARD + text + _GUARD) if guarded else text


def _default_choices(config_class: type, values: Mapping[str, str]) -> dict[str, str]:
    """Return the `--<field>.type` flags that are implied where only fields of the default choice are given."""
    file = values.get(CONFIG_ARG)
    content = None if file is None else yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    chosen = content if isinstance(content, dict) else ()
    implied: dict[str, str] = {}
    for field in dataclasses.fields(typing.cast(Any, config_class)):
        touched = any(flag.startswith(f"{field.name}.") for flag in values)
        given = f"{field.name}.type" in values or field.name in chosen
        if touched and not given and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
            if isinstance(default, ChoiceRegistry):
                implied[f"{field.name}.type"] = default.get_choice_name(type(default))
    return implied


def _quote(text: str) -> str:
    """Write text as a double-quoted YAML scalar; JSON's would split characters beyond U+FFFF in two."""
    return '"' + "".join(f"\\U{ord(character):08X}" for character in text) + '"'


def _unguard(config: Any, flag: Flag) -> None:
    """Take the guard off a field of text, and expand the home directory where it is a path; in place."""
    *groups, name = flag.name.split(".")
    for group in groups:
        config = getattr(config, group)

    def taken(value: Any) -> Any:
        if not isinstance(value, (str, Path)):
            return value
        plain = str(value).removeprefix(_GUARD).removesuffix(_GUARD)
        return type(value)(expand_home(plain, flag.name) if flag.is_path else plain)

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
