"""Start a command: `cobra-vlm COMMAND [--flag value ...]`, or `python -m cobra COMMAND`."""

import os
import sys
from importlib.metadata import version

from cobra.util.waiting import loading

with loading():
    from cobra.commands import NAMES, find_command
    from cobra.util.cli import EXIT_USER_ERROR
    from cobra.util.errors import UserError, check_known
    from cobra.util.flags import HELP
    from cobra.util.program import COMMAND


# That of a program that SIGPIPE ends.
_EXIT_PIPE = 141


def main() -> None:
    """Run the command that the first argument names, and exit with its code."""
    try:
        try:
            _run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough, as `head` has; what is left in the buffer goes nowhere, without a word at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_EXIT_PIPE)


def _run() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["help"] and arguments[1:]:
        arguments = [arguments[1], "--help"]
    if arguments[:1] == ["--version"]:
        print(f"cobra-vlm {version('cobra-vlm')}")
        sys.exit(0)
    if not arguments or arguments[0] in (*HELP, "help"):
        print(_overview())
        sys.exit(0)
    try:
        check_known(arguments[0], NAMES, "the command")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    with loading():
        command = find_command(arguments[0])
    command.run(arguments[1:])


def _overview() -> str:
    lines = [f"usage: {COMMAND} COMMAND [--flag value ...]", ""]
    lines += [f"  {name:<12} {find_command(name).summary}" for name in NAMES]
    return "\n".join([*lines, "", f"{COMMAND} COMMAND --help shows examples and flags."])


if __name__ == "__main__":
    main()
