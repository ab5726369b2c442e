"""The parts of `image.zip` read as one file, so that the joined 160 GB are never written.

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

from cobra.util.errors import UserError

WHOLE = "image.zip"
FETCH_COMMAND = "python scripts/preprocess.py --dataset_id llava-cot-100k --root_dir {root}"

_SUFFIXES = ["".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=2)]
_PART = re.compile(re.escape(WHOLE) + r"\.part-([a-z]{2})")


def find_archive(folder: Path) -> list[Path]:
    """Return the parts of the image archive in `folder` in order, or the one `image.zip`, or nothing.

    Parts go before an `image.zip` beside them, which an interrupted `cat` may have left short.

    Raises:
        UserError: A letter in the sequence of parts is missing, or a file only looks like a part.
    """
    found = sorted(folder.glob(f"{WHOLE}.part-*"))
    strange = [path.name for path in found if not _PART.fullmatch(path.name)]
    if strange:
        raise UserError(f"{folder} holds {', '.join(strange)}, which is no part of {WHOLE}: move it away and run again")
    if not found:
        return [folder / WHOLE] if (folder / WHOLE).is_file() else []
    last = _SUFFIXES.index(found[-1].name[-2:])
    absent = [name for suffix in _SUFFIXES[:last] if (name := f"{WHOLE}.part-{suffix}") not in {p.name for p in found}]
    if absent:
        raise UserError(
            f"{folder} holds parts of {WHOLE} up to {found[-1].name}, but {', '.join(absent)} is missing. Fetch it: "
            + FETCH_COMMAND.format(root=folder.parent.parent)
        )
    return found


class JoinedParts(io.RawIOBase):
    """Files one after another as one seekable, read-only binary stream; closing it closes them.

    Wrap it in `io.BufferedReader` where small reads matter. Not safe to share between threads.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self.paths = list(paths)
        self.sizes = [path.stat().st_size for path in self.paths]
        # starts[i] is the offset of part i; the last entry is the size of the whole.
        self._starts = list(itertools.accumulate(self.sizes, initial=0))
        self._files = [path.open("rb", buffering=0) for path in self.paths]
        self._position = 0

    @property
    def size(self) -> int:
        """Bytes in all parts together."""
        return self._starts[-1]

    def part_at(self, offset: int) -> Path:
        """Return the part that holds the byte at `offset`, from 0 to below `size`."""
        return self.paths[bisect.bisect_right(self._starts, offset) - 1]

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
            OSError: A part has become shorter since it was opened.
        """
        view = memoryview(buffer).cast("B")
        if self._position >= self.size or not view:
            return 0
        index = bisect.bisect_right(self._starts, self._position) - 1
        left = self._starts[index + 1] - self._position
        file = self._files[index]
        file.seek(self._position - self._starts[index])
        count = file.readinto(view[:left])
        if not count:
            raise OSError(f"{self.paths[index]} has become shorter while it was read")
        self._position += count
        return count

    def close(self) -> None:
        """Close the stream and every part."""
        if not self.closed:
            for file in self._files:
                file.close()
        super().close()
