"""Which images an earlier run has unpacked and checked, so that a rerun need not read them."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from cobra.util.jsonl import cut_torn_line, read_log


class Entry(NamedTuple):
    """A file that was whole when its size and time of change were these."""

    path: str
    """Relative to the folder that is unpacked into."""
    size: int
    mtime_ns: int
    crc: int


class Manifest:
    """A file of JSON lines, appended to as images are unpacked, so an interrupt loses little. Use as a context manager.

    A line that a kill or a full disk left torn costs a second look at the images in it, no more.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        self._entries = {entry.path: entry for _, value in read_log(path) if (entry := _entry(value)) is not None}
        # Unbuffered: what a call of add returns from is with the operating system.
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def knows(self, entry: Entry) -> bool:
        """Whether this file was found whole, and has not changed since."""
        return self._entries.get(entry.path) == entry

    def add(self, entries: Iterable[Entry]) -> None:
        """Remember files that are whole."""
        lines = []
        for entry in entries:
            self._entries[entry.path] = entry
            lines.append(json.dumps(entry._asdict()) + "\n")
        if lines:
            self._file.write("".join(lines).encode())


def _entry(value: Any) -> Entry | None:
    """Return the entry in a line's value; None where it is none."""
    try:
        return Entry(**value)
    except TypeError:
        return None
