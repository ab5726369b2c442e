"""Flags of a dataclass: name, kind, default and help of each, and the reading of values as people write them."""

import csv
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from draccus import ChoiceRegistry
from draccus.utils import CONFIG_ARG
from draccus.wrappers.docstring import get_attribute_docstring

from cobra.util.errors import UserError
from cobra.util.home_paths import is_path

HELP = ("--help", "-h")
# Spellings of null, where a flag may be null.
NULLS = ("null", "None", "none")
_BOOLS = {"true": "true", "yes": "true", "on": "true", "1": "true"} | dict.fromkeys(
    ("false", "no", "off", "0"), "false"
)


class Kind(Enum):
    """Kinds of values."""

    TEXT = "text"
    BOOL = "true or false"
    INT = "a whole number"
    FLOAT = "a number"
    LIST = "a list"
    FILE = "a YAML file"
    OTHER = "a value"


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag: a field of a dataclass, `group.name` for a nested one."""

    name: str
    kind: Kind
    help: str = ""
    default: Any = None
    optional: bool = False
    """True where the value may be null."""
    is_path: bool = False
    """True where `~` at its beginning, or that of a list's items, is the home directory."""
    of_text: bool = False
    """True where the value, or each item of a list, is text or a path and arrives as it was typed."""
    length: int | None = None
    """Number of items of a list that takes no other."""
    choices: tuple[str, ...] = ()

    def check(self, value: str) -> str:
        """Return a value as YAML reads it.

        Raises:
            UserError: The value is of another kind.
        """
        if self.optional and value in NULLS:
            return "null"
        if self.kind is Kind.BOOL:
            if value.lower() not in _BOOLS:
                raise self._wrong(value)
            return _BOOLS[value.lower()]
        if self.kind in (Kind.INT, Kind.FLOAT):
            try:
                return repr((int if self.kind is Kind.INT else float)(value))
            except ValueError as error:
                raise self._wrong(value) from error
        return value

    def _wrong(self, value: str) -> UserError:
        null = ", or null" if self.optional else ""
        return UserError(f"--{self.name} takes {self.kind.value}{null}, not {value!r}")

    def split(self, values: Sequence[str]) -> list[str]:
        """Return the items of a list from the arguments that follow its flag: `[a, b]`, `[a b]`, `a,b` or `a b`.

        Blanks separate the items of one argument only where nothing else does and it has brackets, or where the list
        has a fixed length: a path may hold some.

        Raises:
            UserError: The list takes another number of items.
        """
        text = " ".join(values).strip()
        bare = text.removeprefix("[").removesuffix("]") if text.startswith("[") else text
        if "," in bare:
            # Lines of a value are no rows of a table.
            items = next(csv.reader([bare.replace("\n", " ").replace("\r", " ")], skipinitialspace=True))
        elif len(values) > 1 and bare == text:
            items = list(values)
        elif bare != text or len(bare.split()) == self.length:
            items = bare.split()
        else:
            items = [bare]
        items = [item.strip().strip("'\"") for item in items if item.strip()]
        if self.length is not None and len(items) != self.length:
            raise UserError(
                f"--{self.name} takes {self.length} items, separated by commas, not {len(items)} ({', '.join(items)})"
            )
        return items


def flags_of(config_class: type, chosen: Mapping[str, str] | None = None, prefix: str = "") -> dict[str, Flag]:
    """Return the flags of a dataclass by name, in the order of its fields.

    Args:
        config_class: The dataclass; nested dataclasses are groups.
        chosen: Choices of the groups that have some, by the name of their field. Default: those of the defaults.
        prefix: Beginning of each name: `group.`.
    """
    flags: dict[str, Flag] = {}
    hints = typing.get_type_hints(config_class, include_extras=True)
    for field in dataclasses.fields(typing.cast(Any, config_class)):
        name, kind = prefix + field.name, hints[field.name]
        default = _default(field)
        if not dataclasses.is_dataclass(kind):
            flags[name] = _flag(name, kind, default, _help(config_class, field.name))
            continue
        group = typing.cast(type, kind)
        flags[name] = Flag(name, Kind.FILE, _help(config_class, field.name), is_path=True, of_text=True)
        if issubclass(group, ChoiceRegistry):
            known = tuple(group.get_known_choices())
            choice = (chosen or {}).get(name)
            usual = None if default is None else group.get_choice_name(type(default))
            flags[f"{name}.type"] = Flag(
                f"{name}.type", Kind.OTHER, _help(config_class, field.name), usual, choices=known
            )
            group = group.get_choice_class(choice) if choice in known else (group if default is None else type(default))
        flags |= flags_of(group, prefix=f"{name}.")
    return flags


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def _help(config_class: type, name: str) -> str:
    """Return the docstring under a field; a subclass that gives a field another default need not repeat it."""
    texts = (
        get_attribute_docstring(kind, name).docstring_below
        for kind in config_class.__mro__
        if name in kind.__dict__.get("__annotations__", {})
    )
    return " ".join(next(filter(None, texts), "").split())


def _flag(name: str, kind: Any, default: Any, text: str) -> Flag:
    """Return the flag of a field that is no group."""
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    members = typing.get_args(kind) if union else (kind,)
    concrete = [member for member in members if member is not types.NoneType]
    optional = len(concrete) < len(members)
    first = concrete[0]
    if typing.get_origin(first) in (tuple, list):
        items = [item for item in typing.get_args(first) if item is not ...]
        fixed = typing.get_origin(first) is tuple and ... not in typing.get_args(first)
        return Flag(
            *(name, Kind.LIST, text, default, optional),
            is_path=any(item is Path or is_path(item) for item in items),
            of_text=all(map(_is_text, items)),
            length=len(items) if fixed else None,
        )
    if all(map(_is_text, concrete)):
        named = any(member is Path or is_path(member) for member in concrete)
        return Flag(name, Kind.TEXT, text, default, optional, is_path=named, of_text=True)
    kinds = {bool: Kind.BOOL, int: Kind.INT, float: Kind.FLOAT}
    return Flag(name, kinds.get(first, Kind.OTHER) if len(concrete) == 1 else Kind.OTHER, text, default, optional)


def _is_text(kind: Any) -> bool:
    return kind in (str, Path) or is_path(kind)


def read_arguments(arguments: Sequence[str], flags: Mapping[str, Flag]) -> Iterator[tuple[Flag, str | list[str]]]:
    """Yield each flag of a command line with its value, text as it was typed; of a list its items.

    A bare bool flag is true. Hyphens in a flag's name are underscores. A list takes the arguments up to the next flag.

    Raises:
        UserError: A flag is unknown (the nearest is named), has no value or one of another kind, or a word belongs to
            no flag.
    """
    waiting = list(reversed(arguments))
    while waiting:
        argument = waiting.pop()
        if not argument.startswith("--"):
            raise _stray(argument, flags)
        name, equals, value = argument[2:].partition("=")
        flag = _known(name, flags)
        if flag.kind is Kind.LIST:
            values = [value] if equals else []
            while not equals and waiting and not waiting[-1].startswith("--"):
                values.append(waiting.pop())
            if not values:
                raise _no_value(flag)
            yield flag, flag.split(values)
            continue
        if not equals:
            bare = not waiting or waiting[-1].startswith("--")
            if flag.kind is Kind.BOOL and bare:
                value = "true"
            elif not waiting or (bare and not flag.of_text):
                raise _no_value(flag)
            else:
                value = waiting.pop()
        yield flag, flag.check(value)


def _stray(word: str, flags: Mapping[str, Flag]) -> UserError:
    """Return the error for a word that is no flag's value: a flag without its two hyphens, or text without quotes."""
    name = re.split("[= ]", word.lstrip("-\u2013\u2014"))[0].replace("-", "_")
    if name in flags:
        return UserError(f"{word!r} belongs to no flag: did you mean --{name}?")
    return UserError(f"{word!r} belongs to no flag: a value follows its flag, --flag value, in quotes if it has blanks")


def _no_value(flag: Flag) -> UserError:
    return UserError(f"--{flag.name} has no value: it takes {flag.kind.value}")


def _known(name: str, flags: Mapping[str, Flag]) -> Flag:
    name = name if name in flags else name.replace("-", "_")
    if name in flags:
        return flags[name]
    if name == "config_path":
        return Flag(CONFIG_ARG, Kind.FILE, is_path=True, of_text=True)
    # A field's name alone is near enough to its flag: --rank to --lora.rank.
    names = {flag.rpartition(".")[2]: flag for flag in reversed(list(flags))} | {flag: flag for flag in flags}
    nearest = difflib.get_close_matches(name, names, 1)
    hint = f": did you mean --{names[nearest[0]]}?" if nearest else "."
    raise UserError(f"--{name} is unknown{hint} --help all lists the flags")
