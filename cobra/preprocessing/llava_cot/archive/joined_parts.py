"""The parts of `image.zip`, those deleted once unpacked too, read as one file: the joined 160 GB are never written.

The publication is cut by bytes, as `split` does: `image.zip.part-aa`, `-ab`, ... (no multi-volume zip).
"""

import bisect
import io
import itertools
import re
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from cobra.preprocessing.published_files import prepare_command
from cobra.util.errors import UserError
from cobra.util.files import atomic_path, read_json, write_json

WHOLE = "image.zip"
PART = re.compile(re.escape(WHOLE) + r"\.part-[a-z]{2}")

RECORDS = ".prepare"
_STATE = "parts.json"
_DIRECTORY = "directory.bin"
_BEGIN_ANEW = f"Delete the folder {RECORDS} beside train.jsonl and run again: the deleted parts are fetched anew."


class PartGone(OSError):
    """A byte was asked for that lies in a part of the archive that is not there any more."""


@dataclass
class PartsRecord:
    """The parts as they were before the first was deleted; with the archive's directory, kept beside it in a file."""

    sizes: dict[str, int]
    """Bytes of every part by its name, in order."""
    directory_start: int
    """Offset in the archive from which on its bytes are in the file of the directory."""
    consumed: set[str] = field(default_factory=set)
    """Names of the parts that were deleted."""
    wanted: set[str] = field(default_factory=set)
    """Those of them that are needed again, because an image in them was lost or altered later."""

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Return the record of the archive in `folder`; None where no part of it was deleted.

        Raises:
            UserError: The record is damaged.
        """
        path = folder / RECORDS / _STATE
        if not path.is_file():
            return None
        value = read_json(path, "the record of deleted parts", _BEGIN_ANEW)
        try:
            record = cls(value["sizes"], value["directory_start"], set(value["consumed"]), set(value["wanted"]))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is not the record that prepare writes. {_BEGIN_ANEW}") from error
        # With every part there again, the parts speak for themselves.
        return record if any(not (folder / name).is_file() for name in record.consumed) else None

    def save(self, folder: Path) -> None:
        """Write the record, atomically and flushed to disk."""
        value = {**asdict(self), "consumed": sorted(self.consumed), "wanted": sorted(self.wanted)}
        write_json(folder / RECORDS / _STATE, value)

    def save_directory(self, folder: Path, content: bytes) -> None:
        """Write the archive's bytes from `directory_start` on."""
        with atomic_path(folder / RECORDS / _DIRECTORY) as temporary:
            temporary.write_bytes(content)

    def directory_file(self, folder: Path) -> Path:
        """Return the file with the archive's bytes from `directory_start` on.

        Raises:
            UserError: It is not there.
        """
        path = folder / RECORDS / _DIRECTORY
        if not path.is_file():
            raise UserError(f"{path} is missing, without which the archive's other parts cannot be read. {_BEGIN_ANEW}")
        return path


def consumed_parts(folder: Path) -> set[str]:
    """Return the names of parts that need not be fetched: they were deleted once all their images were unpacked.

    A part that held an image that was lost or altered since is not among them, once a run has found that out.
    """
    record = PartsRecord.load(folder)
    return record.consumed - record.wanted if record else set()


def find_archive(folder: Path) -> list[Path]:
    """Return the parts of the image archive in `folder` in order, or the one `image.zip`, or nothing.

    Parts go before an `image.zip` beside them, which an interrupted `cat` may have left short. Parts that were deleted
    once their images were unpacked are in the list too.

    Raises:
        UserError: A letter in the sequence of parts is missing, or a file only looks like a part.
    """
    record = PartsRecord.load(folder)
    known = list(record.sizes) if record else []
    names = sorted(path.name for path in folder.glob(f"{WHOLE}.part-*"))
    strange = [name for name in names if not PART.fullmatch(name) or (known and name not in known)]
    if strange:
        raise UserError(f"{folder} holds {', '.join(strange)}, which is no part of {WHOLE}: move it away and run again")
    if record:
        expected, there = known, {*names, *record.consumed}
    elif names:
        letters = itertools.product(string.ascii_lowercase, repeat=2)
        possible = (f"{WHOLE}.part-{first}{second}" for first, second in letters)
        expected, there = [name for name in possible if name <= names[-1]], set(names)
    else:
        return [folder / WHOLE] if (folder / WHOLE).is_file() else []
    absent = [name for name in expected if name not in there and not (folder / name).is_file()]
    if absent:
        raise UserError(
            f"{folder} holds parts of {WHOLE} up to {expected[-1]}, but {', '.join(absent)} is missing. Fetch it: "
            + prepare_command(folder.parent.parent)
        )
    return [folder / name for name in expected]


class JoinedParts(io.RawIOBase):
    """Files one after another as one seekable, read-only binary stream.

    One file is open at a time, the one that was read last: a part that is deleted frees its space when the next is
    read. Wrap it in `io.BufferedReader` where small reads matter. Not safe to share between threads.
    """

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int] | None = None) -> None:
        """Join files in their order.

        `sizes` has their bytes, where some may be gone: reading in one of those raises :class:`PartGone`.
        """
        super().__init__()
        self.paths = list(paths)
        self.sizes = [path.stat().st_size for path in self.paths] if sizes is None else list(sizes)
        # starts[i] is the offset of part i; the last entry is the size of the whole.
        self._starts = list(itertools.accumulate(self.sizes, initial=0))
        self.size = self._starts[-1]
        self._open: tuple[int, io.FileIO] | None = None
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position, which may lie beyond the end."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move as :meth:`io.IOBase.seek` does and return the new position.

        Raises:
            ValueError: The position would be negative, or `whence` is unknown.
        """
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}
        if whence not in bases or bases[whence] + offset < 0:
            raise ValueError(f"cannot seek by {offset} from {whence}")
        self._position = bases[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read up to the end of a part or of the buffer and return the number of bytes; 0 is the end.

        Raises:
            PartGone: The part is not there.
            OSError: A part has become shorter since it was opened.
        """
        view = memoryview(buffer).cast("B")
        if self._position >= self.size or not view:
            return 0
        index = bisect.bisect_right(self._starts, self._position) - 1
        left = self._starts[index + 1] - self._position
        file = self._part(index)
        file.seek(self._position - self._starts[index])
        count = file.readinto(view[:left])
        if not count:
            raise OSError(f"{self.paths[index]} has become shorter while it was read")
        self._position += count
        return count

    def _part(self, index: int) -> io.FileIO:
        if self._open is None or self._open[0] != index:
            self._close_part()
            try:
                self._open = index, io.FileIO(self.paths[index])
            except FileNotFoundError as error:
                raise PartGone(f"{self.paths[index].name} is not there") from error
        return self._open[1]

    def _close_part(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def close(self) -> None:
        """Close the stream and the part that is open."""
        self._close_part()
        super().close()
