"""Every image decoded once, and the outcome kept for the next run."""

import json
import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image

from cobra.preprocessing.llava_cot.rows import Defect, RowError

# Only formats with a decoder inside Pillow: EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")


class ImageChecker:
    """Decodes the images of a folder, each once, and remembers the outcome in a file by size and time of change.

    The file is JSON lines, appended to as images are decoded, so an interrupt loses nothing. Use it as a context
    manager.
    """

    def __init__(self, folder: Path, record: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[int, int, str | None]] = {}
        self._checked: dict[str, tuple[Defect, str] | None] = {}
        record.parent.mkdir(parents=True, exist_ok=True)
        if record.is_file():
            self._load(record)
        self._record = record.open("a", encoding="utf-8", buffering=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._record.close()

    def check(self, image: str) -> None:
        """Check that an image is there and decodes to RGB.

        Args:
            image: Safe path below the folder.

        Raises:
            RowError: It is missing or unreadable.
        """
        if image not in self._checked:
            self._checked[image] = self._outcome(image)
        found = self._checked[image]
        if found is not None:
            raise RowError(*found)

    def count(self, defect: Defect) -> int:
        """Return how many of the images checked so far have this defect."""
        return sum(found is not None and found[0] == defect for found in self._checked.values())

    def _outcome(self, image: str) -> tuple[Defect, str] | None:
        try:
            status = (self._folder / image).stat()
        except OSError:
            return Defect.MISSING_IMAGE, image
        size, changed, problem = self._known.get(image, (-1, -1, None))
        if (size, changed) != (status.st_size, status.st_mtime_ns):
            problem = _decode_problem(self._folder / image)
            self._remember(image, status, problem)
        return None if problem is None else (Defect.UNREADABLE_IMAGE, f"{image}: {problem}")

    def _remember(self, image: str, status: os.stat_result, problem: str | None) -> None:
        entry = {"image": image, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "problem": problem}
        self._record.write(json.dumps(entry) + "\n")

    def _load(self, record: Path) -> None:
        """Read the outcomes of earlier runs; a line that a kill left torn is passed over."""
        # A torn last line must not swallow the first one of this run.
        with record.open("rb+") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    self._known[entry["image"]] = (entry["size"], entry["mtime_ns"], entry["problem"])
                except (ValueError, KeyError, TypeError):
                    continue
            if record.stat().st_size and not line.endswith(b"\n"):
                file.write(b"\n")


def _decode_problem(path: Path) -> str | None:
    """Return why an image cannot be decoded to RGB, in one line; None if it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                image.convert("RGB")
    # Pillow's decoders raise nearly anything on damaged files.
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".replace(str(path), path.name).split())
    return None
