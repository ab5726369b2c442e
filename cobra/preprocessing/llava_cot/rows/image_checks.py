"""Check every image once, and keep the outcome for the next run."""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import PIL

from cobra.preprocessing.datasets.rows import Defect, RowError
from cobra.preprocessing.packed.rows import RowImages
from cobra.preprocessing.progress import track_items
from cobra.util.images import BadImageError, check_decodes, file_status, read_header
from cobra.util.jsonl import append_lines, cut_torn_line, read_log
from cobra.util.parallel import parallel_map

VERIFY_MODES = ("full", "fast", "none")

# Reader of the images; the number changes with the kinds of files that this package reads.
_READER = f"2, Pillow {PIL.__version__}"

# Images of a chunk: some tenths of a second of decoding, which a kill can lose.
_CHUNK = 32


class Outcome(NamedTuple):
    """Outcome of the check of one image file."""

    size: int
    """Bytes; -1 where there is no file."""
    mtime_ns: int
    mode: str
    """Mode of the check: one of `VERIFY_MODES`."""
    problem: str | None
    """The reason for which it cannot be read, in one line; None if it can."""
    digest: str | None
    """Digest of the file's bytes, 32 hex digits; only in mode `full`."""

    @property
    def defect(self) -> Defect | None:
        """Defect of a row with this image; None if it can be used."""
        if self.size < 0:
            return Defect.MISSING_IMAGE
        return None if self.problem is None else Defect.UNREADABLE_IMAGE


_MISSING = Outcome(-1, -1, "full", None, None)


class ImageChecker:
    """Checks images of a folder, each once, and remembers the outcomes in a file by size and time of change.

    The file is JSON lines, appended to as images are checked, so an interrupt loses next to nothing.
    """

    def __init__(self, folder: Path | RowImages, record: Path, mode: str = "full", workers: int = 1) -> None:
        """Read the outcomes of earlier runs from `record`.

        `folder` holds the images, or says where those of an annotation file are.

        Mode `full` decodes to RGB, `fast` reads the header, `none` only looks for the file.
        """
        self._images = folder if isinstance(folder, RowImages) else RowImages(Path(), folder)
        self._record, self._mode, self._workers = record, mode, workers
        self._checked: dict[str, Outcome] = {}
        self._known: dict[str, Outcome] = {}
        record.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(record)
        for _, value in read_log(record):
            # A line that is no outcome is passed over.
            with suppress(ValueError, TypeError):
                image, size, mtime_ns, known_mode, problem, digest, *reader = value
                # What one release could not read, another may.
                if known_mode in VERIFY_MODES and (problem is None or reader == [_READER]):
                    self._known[image] = Outcome(size, mtime_ns, known_mode, problem, digest)

    def check(self, images: Iterable[str]) -> None:
        """Check images, safe paths below the folder, as far as that has not been done."""
        todo = []
        for image in dict.fromkeys(images):
            if image in self._checked:
                continue
            outcome = self._known_outcome(image)
            if outcome is None:
                todo.append(image)
            else:
                self._checked[image] = outcome
        chunks = [(self._images, todo[begin : begin + _CHUNK], self._mode) for begin in range(0, len(todo), _CHUNK)]
        # Starting processes takes longer than a few hundred images.
        workers = self._workers if len(chunks) > 4 * self._workers else 1
        tracked = track_items(parallel_map(_check_chunk, chunks, workers), "checking images", len(chunks))
        for (_, names, _), outcomes in zip(chunks, tracked, strict=True):
            checked = dict(zip(names, outcomes, strict=True))
            self._checked |= checked
            lines = [[image, *outcome, _READER] for image, outcome in checked.items() if outcome.size >= 0]
            append_lines(self._record, lines)

    def require_usable(self, image: str) -> None:
        """Raise a RowError where an image has been checked and is missing or unreadable."""
        outcome = self._checked.get(image)
        if outcome is not None and outcome.defect is not None:
            raise RowError(outcome.defect, image if outcome.problem is None else f"{image}: {outcome.problem}")

    def is_usable(self, image: str) -> bool:
        """Return True if an image that has been checked can be used."""
        return self._checked[image].defect is None

    def content(self, image: str) -> str:
        """Return what files with the same bytes share, where they have been read in full; else the path."""
        return self._checked[image].digest or image

    def counts(self) -> Counter[Defect]:
        """Return how many of the images checked so far are missing and how many unreadable."""
        return Counter(outcome.defect for outcome in self._checked.values() if outcome.defect is not None)

    def _known_outcome(self, image: str) -> Outcome | None:
        """Return what needs no check, or an earlier outcome, of this or a stricter mode, of a file as it was then."""
        if self._images.is_inside(image):
            return None
        try:
            status = file_status(self._images.folder / image)
        except FileNotFoundError:
            return _MISSING
        except BadImageError as error:
            return Outcome(0, 0, self._mode, str(error), None)
        if self._mode == "none":
            return Outcome(status.st_size, status.st_mtime_ns, "none", None, None)
        known = self._known.get(image)
        if known is None or (known.size, known.mtime_ns) != (status.st_size, status.st_mtime_ns):
            return None
        return known if VERIFY_MODES.index(known.mode) <= VERIFY_MODES.index(self._mode) else None


def _check_chunk(chunk: tuple[RowImages, list[str], str]) -> list[Outcome]:
    row_images, images, mode = chunk
    return [_check_image(row_images, image, mode) for image in images]


def _check_image(row_images: RowImages, image: str, mode: str) -> Outcome:
    """Check one image; it may vanish meanwhile."""
    problem = digest = None
    size = mtime_ns = 0
    try:
        source = row_images.open(image)
        if isinstance(source, Path):
            status = file_status(source)
            size, mtime_ns = status.st_size, status.st_mtime_ns
        if mode == "full":
            check_decodes(source)
            with source.open("rb") if isinstance(source, Path) else io.BytesIO(source.getvalue()) as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        else:
            read_header(source)
    except FileNotFoundError:
        return _MISSING
    except OSError as error:
        problem = " ".join(str(error).split())
    return Outcome(size, mtime_ns, mode, problem, digest)
