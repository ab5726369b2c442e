"""Check every image once, and keep the outcome for the next run."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import PIL

from cobra.preprocessing.datasets.rows import Defect, RowError
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


_MISSING = Outcome(-1, -1, "full", None, None)


class ImageChecker:
    """Checks images of a folder, each once, and remembers the outcomes in a file by size and time of change.

    The file is JSON lines, appended to as images are checked, so an interrupt loses next to nothing.
    """

    def __init__(self, folder: Path, record: Path, mode: str = "full", workers: int = 1) -> None:
        """Read the outcomes of earlier runs.

        Args:
            folder: The image root.
            record: The file of outcomes.
            mode: `full` decodes to RGB, `fast` reads the header, `none` only looks for the file.
            workers: Processes.
        """
        self._folder = folder
        self._mode = mode
        self._workers = workers
        self._known: dict[str, Outcome] = {}
        self._checked: dict[str, Outcome] = {}
        record.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(record)
        self._load(record)
        self._record = record

    def check(self, images: Iterable[str]) -> None:
        """Check images, as far as that has not been done.

        Args:
            images: Safe paths below the folder.
        """
        todo = []
        for image in dict.fromkeys(images):
            if image not in self._checked and not self._is_known(image):
                todo.append(image)
        chunks = [(self._folder, todo[begin : begin + _CHUNK], self._mode) for begin in range(0, len(todo), _CHUNK)]
        # Starting processes takes longer than a few hundred images.
        workers = self._workers if len(chunks) > 4 * self._workers else 1
        outcomes = parallel_map(_check_chunk, chunks, workers)
        tracked = track_items(outcomes, "checking images", len(chunks))
        for (_, names, _), chunk_outcomes in zip(chunks, tracked, strict=True):
            self._record_outcomes(names, chunk_outcomes)

    def require_usable(self, image: str) -> None:
        """Raise where an image has been checked and cannot be used.

        Raises:
            RowError: It is missing or unreadable.
        """
        outcome = self._checked.get(image)
        if outcome is None:
            return
        if outcome.size < 0:
            raise RowError(Defect.MISSING_IMAGE, image)
        if outcome.problem is not None:
            raise RowError(Defect.UNREADABLE_IMAGE, f"{image}: {outcome.problem}")

    def is_usable(self, image: str) -> bool:
        """Return True if an image that has been checked can be used."""
        outcome = self._checked[image]
        return outcome.size >= 0 and outcome.problem is None

    def content(self, image: str) -> str:
        """Return what files with the same bytes share, where they have been read in full; else the path."""
        return self._checked[image].digest or image

    def counts(self) -> Counter[Defect]:
        """Return how many of the images checked so far are missing and how many unreadable."""
        return Counter(
            Defect.MISSING_IMAGE if outcome.size < 0 else Defect.UNREADABLE_IMAGE
            for outcome in self._checked.values()
            if outcome.size < 0 or outcome.problem is not None
        )

    def _is_known(self, image: str) -> bool:
        """Take over an earlier outcome, of the same or a stricter mode, where the file has not changed since."""
        try:
            status = file_status(self._folder / image)
        except FileNotFoundError:
            self._checked[image] = _MISSING
            return True
        except BadImageError as error:
            self._checked[image] = Outcome(0, 0, self._mode, str(error), None)
            return True
        if self._mode == "none":
            self._checked[image] = Outcome(status.st_size, status.st_mtime_ns, "none", None, None)
            return True
        known = self._known.get(image)
        if known is None or (known.size, known.mtime_ns) != (status.st_size, status.st_mtime_ns):
            return False
        if VERIFY_MODES.index(known.mode) > VERIFY_MODES.index(self._mode):
            return False
        self._checked[image] = known
        return True

    def _record_outcomes(self, images: Sequence[str], outcomes: Sequence[Outcome]) -> None:
        self._checked.update(zip(images, outcomes, strict=True))
        pairs = zip(images, outcomes, strict=True)
        append_lines(self._record, [[image, *outcome, _READER] for image, outcome in pairs if outcome.size >= 0])

    def _load(self, record: Path) -> None:
        """Read the outcomes of earlier runs; a line that is none is passed over."""
        for _, value in read_log(record):
            try:
                image, size, mtime_ns, mode, problem, digest, *reader = value
                # What one release could not read, another may.
                if mode in VERIFY_MODES and (problem is None or reader == [_READER]):
                    self._known[image] = Outcome(size, mtime_ns, mode, problem, digest)
            except (ValueError, TypeError):
                continue


def _check_chunk(chunk: tuple[Path, list[str], str]) -> list[Outcome]:
    folder, images, mode = chunk
    return [_check_image(folder / image, mode) for image in images]


def _check_image(path: Path, mode: str) -> Outcome:
    """Check one image; it may vanish meanwhile."""
    problem = digest = None
    size = mtime_ns = 0
    try:
        status = file_status(path)
        size, mtime_ns = status.st_size, status.st_mtime_ns
        if mode == "full":
            check_decodes(path)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        else:
            read_header(path)
    except FileNotFoundError:
        return _MISSING
    except OSError as error:
        problem = " ".join(str(error).split())
    return Outcome(size, mtime_ns, mode, problem, digest)
