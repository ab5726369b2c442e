"""Find missing images of all rows before the first is needed: one that is missing would be met hours later."""

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from cobra.preprocessing.datasets.arrow_rows import Rows
from cobra.preprocessing.progress import track_items
from cobra.util.printable import printable

# Of a folder in which this many images are expected all names are listed; in others each image is asked for.
_LISTED = 32
# A disk of the network takes 1 ms and more for an answer, and gives many at once.
_THREADS = 16
_SECONDS = 60.0
# Rows that are named, and characters of a path.
_SHOWN = 5
_CHARACTERS = 80


@dataclass(frozen=True)
class Presence:
    """Outcome of the search for images."""

    missing: list[int]
    """Rows whose image is not there, ascending."""
    looked_for: int
    """Rows whose image was looked for."""
    late: bool
    """True if the time was over before all were."""

    def name_missing(self, rows: Rows) -> str:
        """Return how many rows lack their image, with the ids and paths of the first few."""
        named = [
            f"id {printable(repr(rows[row].get('id')), _CHARACTERS)}: {printable(rows[row]['image'], _CHARACTERS)}"
            for row in self.missing[:_SHOWN]
        ]
        more = ", ..." if len(self.missing) > _SHOWN else ""
        return f"{len(self.missing):,} of {len(rows):,} rows of {rows.annotation_file} ({', '.join(named)}{more})"


def look_for_images(rows: Rows, image_dir: Path, seconds: float = _SECONDS) -> Presence:
    """Find rows whose image is missing below `image_dir`, without opening any; none is looked for after `seconds`."""
    folders: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, image in enumerate(rows.images()):
        if image is not None:
            folder, name = os.path.split(os.path.join(image_dir, image))
            folders[folder][name].append(row)
    end = time.monotonic() + seconds
    missing: list[int] = []
    looked_for, late = 0, False
    with ThreadPoolExecutor(_THREADS, "presence") as pool:
        absences = pool.map(_absent, folders, folders.values(), repeat(end))
        for wanted, absent in zip(track_items(list(folders.values()), "Looking for images"), absences, strict=True):
            if absent is None:
                late = True
                continue
            looked_for += sum(map(len, wanted.values()))
            missing += [row for name in absent for row in wanted[name]]
    # Once more by the row itself: a name can be written in several ways on some systems, and the cache may be damaged.
    confirmed = [
        row
        for row in sorted(missing)
        if time.monotonic() > end or not os.path.exists(Path(image_dir) / rows[row]["image"])
    ]
    return Presence(confirmed, looked_for, late)


def _absent(folder: str, wanted: Mapping[str, list[int]], end: float) -> list[str] | None:
    """Return the names that are not in a folder; None where the time is over."""
    asked = (name for name in wanted if os.path.exists(os.path.join(folder, name)))
    present = set()
    for name in asked if len(wanted) < _LISTED else _names(folder):
        if time.monotonic() > end:
            return None
        present.add(name)
    return [name for name in wanted if name not in present]


def _names(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries)
    # Also of a path that is too long or holds a NUL.
    except (OSError, ValueError):
        return
