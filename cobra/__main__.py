"""Start a command: `cobra-vlm COMMAND [--flag value ...]`, or `python -m cobra COMMAND`."""

import sys

from cobra.util.waiting import loading

with loading():
    from cobra.commands import NAMES, find_command
    from cobra.util.cli import EXIT_USER_ERROR
    from cobra.util.errors import UserError, check_known
    from cobra.util.flags import HELP
    from cobra.util.program import COMMAND


def main() -> None:
    """Run the command that the first argument names, and exit with its code."""
    arguments = sys.argv[1:]
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
