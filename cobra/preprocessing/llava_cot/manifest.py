"""Which images an earlier run has unpacked and checked, so that a rerun need not read them."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self


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
        self._entries: dict[str, Entry] = {}
        # Unbuffered: what a call of add returns from is with the operating system.
        self._file = path.open("ab+", buffering=0)
        self._load()

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

    def _load(self) -> None:
        self._file.seek(0)
        line = b"\n"
        with open(self._file.fileno(), "rb", closefd=False) as file:
            for line in file:
                try:
                    entry = Entry(**json.loads(line))
                except (ValueError, TypeError):
                    continue
                self._entries[entry.path] = entry
        # A torn last line must not swallow the first one of this run.
        if not line.endswith(b"\n"):
            self._file.write(b"\n")
