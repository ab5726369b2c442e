"""Delete parts of the archive while it is unpacked, so that the disk holds the images and not the archive too.

This is safe because a part goes only when every image in it is whole and flushed to disk; the record of what is gone
is written first; and the archive's directory stays, in a file of its own, so that every later run knows what each image
should be and which part held it.
"""

import io
import os
import zipfile
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

from cobra.preprocessing.archives import disk_bytes
from cobra.preprocessing.llava_cot.archive.integrity import ImageArchive
from cobra.preprocessing.llava_cot.archive.joined_parts import JoinedParts, PartsRecord


class PartLedger:
    """Counts the images of each part that are not whole yet, and deletes the part when none is left.

    The parts with the directory go last, when nothing holds any other.
    """

    def __init__(
        self, folder: Path, archive: ImageArchive, wanted: Iterable[zipfile.ZipInfo], kept: Iterable[zipfile.ZipInfo]
    ) -> None:
        """Begin, and keep the directory in a file if no earlier run has.

        :meth:`release` will name the images that are `wanted`; those that are `kept` are not unpacked now and must not
        be lost.
        """
        self._folder, self._archive = folder, archive
        self._record = archive.record or _begin(folder, archive)
        # How many reasons each part has to stay.
        self._pending = [0] * len(archive.paths)
        self._count(kept, 1)
        self._kept = list(self._pending)
        self._count(wanted, 1)
        self._directory = archive.parts_between(archive.directory_start, archive.starts[-1])

    def space_needed(self, absent: Iterable[zipfile.ZipInfo]) -> int:
        """Return the most bytes that writing these members in order needs at once; parts that were read are deleted."""
        there = (path.is_file() for path in self._archive.paths)
        sizes = zip(self._archive.sizes, there, self._kept, strict=True)
        freed = [0, *accumulate(size if is_there and not kept else 0 for size, is_there, kept in sizes)]
        for part in self._directory:
            freed[part + 1] = freed[self._directory.start]
        written = worst = 0
        for info in absent:
            written += disk_bytes(info.file_size)
            worst = max(worst, written - freed[self._archive.parts_of(info).start])
        return worst

    def release(self, infos: Iterable[zipfile.ZipInfo]) -> None:
        """Count these images as whole, and delete the parts that nothing needs any more."""
        self._count(infos, -1)
        free = range(len(self._pending)) if not any(self._pending) else range(self._directory.start)
        paths = (self._archive.paths[part] for part in free if not self._pending[part])
        ready = [path for path in paths if path.is_file()]
        if ready:
            # A power cut must find the images on the disk before it finds the part gone.
            os.sync()
            self._record.consumed.update(path.name for path in ready)
            self._record.save(self._folder)
            for path in ready:
                path.unlink()

    def _count(self, infos: Iterable[zipfile.ZipInfo], step: int) -> None:
        for info in infos:
            for part in self._archive.parts_of(info):
                self._pending[part] += step


def _begin(folder: Path, archive: ImageArchive) -> PartsRecord:
    """Write the directory to a file of its own and return the record of an archive that is whole yet."""
    sizes = {path.name: size for path, size in zip(archive.paths, archive.sizes, strict=True)}
    record = PartsRecord(sizes, archive.directory_start)
    with io.BufferedReader(JoinedParts(archive.paths)) as stream:
        stream.seek(archive.directory_start)
        record.save_directory(folder, stream.read())
    return record


def mark_wanted_parts(folder: Path, archive: ImageArchive, damaged: Iterable[zipfile.ZipInfo]) -> None:
    """Mark the deleted parts that held damaged images, so that the next run downloads them again."""
    if archive.record is None:
        return
    spanned = {archive.paths[part] for info in damaged for part in archive.parts_of(info)}
    wanted = {path.name for path in spanned if not path.is_file()}
    if wanted != archive.record.wanted:
        archive.record.wanted = wanted
        archive.record.save(folder)
