"""The error that a user can act on."""


class UserError(ValueError):
    """Something about the input, the configuration or the machine that the user can mend.

    The message is one paragraph: what was found and where (file, line, row id), what was expected, and the command
    or flag that fixes it. Scripts print it without a traceback and exit with code 2 (:func:`cobra.util.cli.run`).
    """


def missing_extra(package: str, extra: str, purpose: str) -> UserError:
    """Build the error for an optional package that is needed and not installed.

    Args:
        package: The package's name on PyPI, e.g. ``wandb``.
        extra: The extra of this project that installs it, e.g. ``tracking``.
        purpose: What it is needed for, as the subject of the sentence, e.g. ``The wandb tracker``.
    """
    return UserError(f"{purpose} needs the package {package}, which is not installed: pip install 'cobra-vlm[{extra}]'")
