"""Read the parts of `image.zip` as one file, so that the joined 160 GB are never written.

The publication is cut by bytes, as `split` does: `image.zip.part-aa`, `-ab`, ... (no multi-volume zip).
"""

import bisect
import io
import itertools
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cobra.preprocessing.llava_cot.archive.parts_record import PartsRecord
from cobra.preprocessing.published_files import prepare_command
from cobra.util.errors import UserError

WHOLE = "image.zip"
PART = re.compile(re.escape(WHOLE) + r"\.part-[a-z]{2}")

_SUFFIXES = ["".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=2)]


class PartGone(OSError):
    """A byte was asked for that lies in a part of the archive that is not there any more."""


def find_archive(folder: Path) -> list[Path]:
    """Return the parts of the image archive in `folder` in order, or the one `image.zip`, or nothing.

    Parts go before an `image.zip` beside them, which an interrupted `cat` may have left short. Parts that were deleted
    once their images were unpacked (:mod:`cobra.preprocessing.llava_cot.archive.part_deletion`) are in the list too.

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
        expected = [f"{WHOLE}.part-{suffix}" for suffix in _SUFFIXES[: _SUFFIXES.index(names[-1][-2:]) + 1]]
        there = set(names)
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
        """Join files.

        Args:
            paths: The files, in order.
            sizes: Their bytes, where some of the files may be gone; reading in one of those raises
                :class:`PartGone`. None looks at the files.
        """
        super().__init__()
        self.paths = list(paths)
        self.sizes = [path.stat().st_size for path in self.paths] if sizes is None else list(sizes)
        # starts[i] is the offset of part i; the last entry is the size of the whole.
        self._starts = list(itertools.accumulate(self.sizes, initial=0))
        self._open: tuple[int, io.FileIO] | None = None
        self._position = 0

    @property
    def size(self) -> int:
        """Bytes in all parts together."""
        return self._starts[-1]

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
