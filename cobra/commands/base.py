"""Program with its flags and its help."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cobra.util.cli import run
from cobra.util.help_text import Usage


@dataclass(frozen=True)
class Command:
    """Program that a script or `cobra-vlm` starts."""

    main: Callable[[Any], int | None]
    """The program. It takes an instance of `config_class` and returns its exit code; None is 0."""
    config_class: type
    """Dataclass of its flags."""
    usage: Usage
    """Name, and first screen of its help."""

    @property
    def summary(self) -> str:
        """First sentence of what its flags' dataclass says."""
        return " ".join((self.config_class.__doc__ or "").split()).partition(". ")[0].rstrip(".")

    def run(self, args: Sequence[str] | None = None) -> None:
        """Parse the flags, run and exit: see :func:`cobra.util.cli.run`."""
        run(self.main, self.config_class, args, self.usage)
