"""Files of JSON lines that grow with the steps of a run: whole lines only, and cut back when a run goes on."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cobra.util.files import refuse_link
from cobra.util.jsonl import append_lines, read_log


class StepLines:
    """A file with lines that name their step; steps never go down, and what is appended survives a kill."""

    def __init__(self, path: Path, step_key: str, last_step: int) -> None:
        """Open the file, and make it where it is absent.

        Args:
            path: The file.
            step_key: Key of the step in every line.
            last_step: The file is cut behind the lines of this step, and before a line that is torn; 0 empties it.

        Raises:
            UserError: It is a link, or no plain file.
        """
        self._path, self._key = path, step_key
        refuse_link(path)
        path.touch()
        # Cutting is one call of the system: it is done or not, and needs no room on the disk.
        os.truncate(path, max((end for end, _ in _whole_lines(path, step_key, last_step)), default=0))

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write lines, or raise an OSError and write none; a number that is not finite becomes null."""
        append_lines(self._path, map(_finite, lines))

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the lines, from the first."""
        return (line for _, line in _whole_lines(self._path, self._key, math.inf))


def _whole_lines(path: Path, step_key: str, last_step: float) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (bytes up to their end, values) of lines, up to a step or the first line that is not whole."""
    for end, values in read_log(path):
        step = values.get(step_key) if isinstance(values, dict) else None
        if not isinstance(step, int) or step > last_step:
            return
        yield end, values


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
