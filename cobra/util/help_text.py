"""Help of a program: its purpose, examples, and the flags that people use or all of them."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cobra.util.flags import Flag, Kind
from cobra.util.program import as_installed, command_line, script_line

_METAVARS = {
    Kind.TEXT: " TEXT",
    Kind.INT: " N",
    Kind.FLOAT: " X",
    Kind.LIST: " A,B",
    Kind.FILE: " FILE",
    Kind.OTHER: " NAME",
}
# Columns before a flag's text.
_INDENT = 8


@dataclass(frozen=True)
class Usage:
    """Name and first screen of a program's help."""

    name: str = ""
    """Command of `cobra-vlm`; empty for a script that is none."""
    examples: tuple[str, ...] = ()
    """Arguments of the examples."""
    common: tuple[str, ...] = ()
    """Flags that `--help` shows; the others take `--help all`. Empty shows all of them."""
    positional: str = ""
    """Flag whose value may come first, without its name."""


NO_USAGE = Usage()


def help_text(usage: Usage, purpose: str, flags: Mapping[str, Flag], everything: bool, width: int) -> str:
    """Return the help of a program.

    Args:
        usage: Its name, examples and common flags.
        purpose: Docstring of its dataclass.
        flags: Its flags by name.
        everything: Show all flags, and not only the common ones.
        width: Columns to wrap at.
    """
    start = command_line(usage.name) if usage.name else script_line()
    first = f" [{usage.positional.upper()}]" if usage.positional else ""
    lines = [f"usage: {start}{first} [--flag value ...]", "", *textwrap.wrap(" ".join(purpose.split()), width), ""]
    if usage.examples:
        lines += ["examples:", *(f"  {start} {example}".rstrip() for example in usage.examples), ""]
    shown = flags if everything or not usage.common else usage.common
    lines.append("flags:")
    for name in shown:
        lines += _flag_lines(flags[name], width)
    if len(shown) < len(flags):
        lines += ["", f"{len(flags) - len(shown)} more flags: {start} --help all"]
    return as_installed("\n".join(lines))


def _flag_lines(flag: Flag, width: int) -> Iterator[str]:
    metavar = " PATH" if flag.is_path and flag.kind is Kind.TEXT else _METAVARS.get(flag.kind, "")
    yield f"  --{flag.name}{metavar}"
    text = flag.help
    if flag.choices:
        text += f" One of: {', '.join(flag.choices)}."
    default = _shown(flag.default)
    if default and flag.kind is not Kind.FILE:
        text += f" (default: {default})"
    yield from textwrap.wrap(text.strip(), width, initial_indent=" " * _INDENT, subsequent_indent=" " * _INDENT)


def _shown(default: Any) -> str:
    if isinstance(default, (list, tuple)):
        return ",".join(map(str, default))
    if isinstance(default, bool):
        return str(default).lower()
    return str(default) if isinstance(default, (str, int, float, Path)) else ""
