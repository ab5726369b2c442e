"""Pass over the images: each is opened once, in several processes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from cobra.preprocessing.datasets.image_presence import folder_with, leads_out
from cobra.preprocessing.datasets.rows import RowError
from cobra.preprocessing.llava_cot.rows.image_checks import ImageChecker
from cobra.preprocessing.packed.rows import RowImages
from cobra.util.images import read_header
from cobra.util.printable import printable

# Paths that tell which folder holds the images.
_PROBES = 200
_SHOWN = 4
_CHARACTERS = 200


@dataclass
class Pictures:
    """Facts about the distinct image files of the rows."""

    folder: Path
    """The folder that their paths are relative to."""
    files: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    """Paths that cannot be trained on, with the reason."""
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    turned: int = 0
    """Files that viewers turn upright by EXIF, which training does not."""
    same_bytes: int = 0
    """Files with the bytes of an earlier one."""
    smallest: tuple[int, int] | None = None
    """Width and height of the file with the shortest side."""
    largest: tuple[int, int] | None = None
    """Width and height of the file with the most pixels."""
    contents: dict[str, str] = field(default_factory=dict)
    """Digest of the file by its path."""

    @property
    def named(self) -> list[str]:
        """The first bad paths, with the reason."""
        return [printable(problem, _CHARACTERS) for problem in list(self.bad.values())[:_SHOWN]]


def find_folder(given: Path | None, beside: Path, images: Sequence[str | None], annotation_file: Path) -> Path:
    """Return the image folder: the one that is given, else the one near the rows that holds the most of the first ones.

    Args:
        given: The user's choice, or None.
        beside: Folder of the data.
        images: Paths as the rows have them, None for rows of text only.
        annotation_file: The file of the rows.
    """
    if given is not None:
        return given
    paths = [path for path in dict.fromkeys(images) if path][:_PROBES]
    nearby = [folder for folder in (beside / "images", beside) if folder.is_dir()]
    found = {
        folder: sum((folder / path).is_file() and not leads_out(path, folder) for path in paths) for folder in nearby
    }
    best = max(nearby, key=lambda folder: found[folder])
    if paths and not found[best]:
        return folder_with(images, best, annotation_file) or best
    return best


def look_at(images: Sequence[str | None], row_images: RowImages, workers: int) -> Pictures:
    """Open every image of some rows.

    Args:
        images: Paths as the rows have them, None for rows of text only.
        row_images: Where they are opened.
        workers: Processes.
    """
    folder = row_images.folder
    paths = [path for path in dict.fromkeys(images) if path]
    pictures = Pictures(folder, len(paths))
    inside = []
    for path in paths:
        if row_images.is_inside(path):
            inside.append(path)
        elif leads_out(path, folder):
            pictures.bad[path] = f"{path} lies outside the folder {folder}"
        elif path.startswith(("http://", "https://")):
            pictures.bad[path] = f"{path} is an address: fetch the image, and name its file"
        else:
            inside.append(path)
    with TemporaryDirectory(prefix="cobra-check-") as scratch:
        checker = ImageChecker(row_images, Path(scratch) / "images.jsonl", "full", workers)
        checker.check(inside)
    shortest, most = float("inf"), 0
    for path in inside:
        try:
            checker.require_usable(path)
        except RowError as error:
            pictures.bad[path] = str(error)
            continue
        pictures.contents[path] = checker.content(path)
        header = read_header(row_images.open(path))
        pictures.formats[header.format] += 1
        pictures.modes[header.mode] += 1
        pictures.turned += header.turned
        size = header.width, header.height
        if min(size) < shortest:
            shortest, pictures.smallest = min(size), size
        if size[0] * size[1] > most:
            most, pictures.largest = size[0] * size[1], size
    pictures.same_bytes = len(pictures.contents) - len(set(pictures.contents.values()))
    return pictures
