"""Print the shell's completion of `cobra-vlm`: its commands, flags and their choices."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from cobra.commands import NAMES, find_command
from cobra.commands.base import Command
from cobra.util.errors import check_known
from cobra.util.flags import Flag, Kind, flags_of
from cobra.util.help_text import Usage
from cobra.util.program import COMMAND as PROGRAM


@dataclass
class CompletionConfig:
    """Print a shell's completion of commands and flags."""

    shell: str = "bash"
    """Shell: bash, zsh, tcsh or fish."""


def main(config: CompletionConfig) -> None:
    """Print the completion of a shell.

    Raises:
        UserError: The shell is unknown.
    """
    import shtab

    check_known(config.shell, shtab.SUPPORTED_SHELLS, "--shell")
    parser = argparse.ArgumentParser(PROGRAM)
    commands = parser.add_subparsers()
    for name in NAMES:
        command = find_command(name)
        subparser = commands.add_parser(name, help=command.summary)
        for flag in flags_of(command.config_class).values():
            _add(subparser, flag, shtab.FILE)
    print(shtab.complete(parser, config.shell))


def _add(parser: argparse.ArgumentParser, flag: Flag, files: Mapping[str, str | Mapping[str, str]]) -> None:
    choices = ("true", "false") if flag.kind is Kind.BOOL else flag.choices or None
    first_sentence = flag.help.partition(". ")[0].replace("%", "%%")
    argument = parser.add_argument(f"--{flag.name}", help=first_sentence, choices=choices)
    if flag.is_path:
        argument.complete = files  # type: ignore[attr-defined]


COMMAND = Command(
    main,
    CompletionConfig,
    Usage(
        "completion",
        ("bash >> ~/.bash_completion", "zsh > ~/.zfunc/_cobra-vlm", "fish > ~/.config/fish/completions/cobra-vlm.fish"),
        positional="shell",
    ),
)
