"""Find missing images of all rows before the first is needed: one that is missing would be met hours later."""

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from cobra.preprocessing.datasets.arrow_rows import Rows
from cobra.preprocessing.packed.rows import RowImages
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
    outside: list[int]
    """Rows whose image lies outside the folder, ascending; it was not looked for."""
    looked_for: int
    """Rows whose image was looked for."""
    late: bool
    """True if the time was over before all were."""


def name_rows(rows: Rows, positions: Sequence[int]) -> str:
    """Return how many rows there are at some positions, with the ids and image paths of the first few."""
    named = [
        f"id {printable(repr(rows[row].get('id')), _CHARACTERS)}: {printable(rows[row]['image'], _CHARACTERS)}"
        for row in positions[:_SHOWN]
    ]
    more = ", ..." if len(positions) > _SHOWN else ""
    return f"{len(positions):,} of {len(rows):,} rows of {rows.annotation_file} ({', '.join(named)}{more})"


def leads_out(image: str, image_dir: Path) -> bool:
    """Return True if an image's path is not below the folder, by its text: links in the folder are the user's own."""
    if not (os.path.isabs(image) or ".." in image):
        return False
    return not Path(os.path.abspath(os.path.join(image_dir, image))).is_relative_to(os.path.abspath(image_dir))


def folder_with(images: Sequence[str | None], image_dir: Path, annotation_file: Path) -> Path | None:
    """Return a folder nearby that holds the first of some images, or all of them where their paths are absolute.

    Args:
        images: Paths as rows have them; None is passed over.
        image_dir: A folder that does not hold them.
        annotation_file: The file of the rows.

    Returns:
        The folder, or None where none is found.
    """
    paths = [image for image in images if image]
    absolute = [os.path.dirname(path) for path in paths if os.path.isabs(path)]
    if absolute and len(absolute) == len(paths):
        return Path(os.path.commonpath(absolute))
    beside = annotation_file.parent
    nearby = (image_dir.parent, beside, beside / "images", beside.parent, image_dir.parent.parent, Path())
    return next((folder for folder in nearby if paths and (folder / paths[0]).is_file()), None)


def look_for_images(rows: Rows, images: RowImages, seconds: float = _SECONDS) -> Presence:
    """Find rows whose image is missing in its folder, without opening any; none is looked for after `seconds`.

    Images inside the annotation file are there.
    """
    image_dir = images.folder
    folders: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    outside: list[int] = []
    for row, image in enumerate(rows.images()):
        if image is None or images.is_inside(image):
            continue
        if leads_out(image, image_dir):
            outside.append(row)
        else:
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
    return Presence(confirmed, outside, looked_for, late)


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
