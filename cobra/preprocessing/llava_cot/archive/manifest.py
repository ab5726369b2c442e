"""Record of the images that earlier runs unpacked and checked, which a rerun need not read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from cobra.util.jsonl import append_lines, cut_torn_line, read_log


class Entry(NamedTuple):
    """A file that was whole when its size and time of change were these."""

    path: str
    """Relative to the folder that is unpacked into."""
    size: int
    mtime_ns: int
    crc: int


class Manifest:
    """A file of JSON lines, appended to as images are unpacked, so an interrupt loses little.

    A line that a kill or a full disk left torn costs a second look at the images in it, no more.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        self._entries = {entry.path: entry for _, value in read_log(path) if (entry := _entry(value)) is not None}
        self._path = path

    def knows(self, entry: Entry) -> bool:
        """Return True if this file was found whole, and has not changed since."""
        return self._entries.get(entry.path) == entry

    def add(self, entries: Iterable[Entry]) -> None:
        """Remember files that are whole.

        Raises:
            OSError: The record cannot be written.
        """
        whole = list(entries)
        self._entries.update((entry.path, entry) for entry in whole)
        append_lines(self._path, [entry._asdict() for entry in whole])


def _entry(value: Any) -> Entry | None:
    """Return the entry in a line's value; None where it is none."""
    try:
        return Entry(**value)
    except TypeError:
        return None
