"""Worker processes of unpacking: read and check members, write them, and rename them into place."""

import fcntl
import os
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from cobra.preprocessing.archives import DAMAGE_ERRORS, check_free_space, disk_bytes, write_member
from cobra.preprocessing.llava_cot.archive.joined_parts import JoinedParts, PartGone
from cobra.preprocessing.zip_members import MemberStream, open_member
from cobra.util.jsonl import append_lines, cut_torn_line, read_log
from cobra.util.mounts import lock_file

# Held by the workers, so that the next run can wait for those of a run that was killed.
WORKERS_LOCK = "workers.lock"

# A tenth of a second of work: worth the way to another process, and little to wait for after Ctrl-C.
_CHUNK_MEMBERS = 128
_CHUNK_BYTES = 2**22
_READ_AHEAD_BYTES = 2**18
_BLOCK_BYTES = 2**20


class Entry(NamedTuple):
    """A file that was whole when its size and time of change were these."""

    path: str
    """Relative to the folder that is unpacked into."""
    size: int
    mtime_ns: int
    crc: int


class Manifest:
    """Record of the images that earlier runs unpacked and checked, which a rerun need not read.

    A file of JSON lines, appended to as images are unpacked, so an interrupt loses little. A line that a kill or a full
    disk left torn costs a second look at the images in it, no more.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        self._path = path
        self._entries: dict[str, Entry] = {}
        for _, value in read_log(path):
            # A line that is no entry is passed over.
            with suppress(TypeError):
                entry = Entry(**value)
                self._entries[entry.path] = entry

    def knows(self, entry: Entry) -> bool:
        """Return True if this file was found whole, and has not changed since."""
        return self._entries.get(entry.path) == entry

    def add(self, entries: Sequence[Entry]) -> None:
        """Remember files that are whole; an OSError where the record cannot be written."""
        self._entries.update((entry.path, entry) for entry in entries)
        append_lines(self._path, [entry._asdict() for entry in entries])


@dataclass(frozen=True)
class Task:
    """An image to unpack."""

    path: str
    """Path below the destination."""
    info: zipfile.ZipInfo
    is_there: bool
    """True if a file of the right size is there; its CRC decides if it is kept."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a task."""

    entry: Entry | None
    """The file, if it is whole now."""
    is_new: bool
    """True if it was written now."""
    problem: str | None
    """The reason for which it is not whole."""


def find_whole(
    destination: Path, wanted: Mapping[str, zipfile.ZipInfo], manifest: Manifest
) -> tuple[list[zipfile.ZipInfo], list[Task]]:
    """Return the images that are known to be whole, and tasks for all others in the order of the archive."""
    whole: list[zipfile.ZipInfo] = []
    tasks: list[Task] = []
    base = os.fspath(destination)
    for path, info in sorted(wanted.items(), key=lambda item: item[1].header_offset):
        try:
            status = os.stat(f"{base}/{path}")
        except OSError:
            tasks.append(Task(path, info, False))
            continue
        right_size = stat.S_ISREG(status.st_mode) and status.st_size == info.file_size
        if right_size and manifest.knows(Entry(path, status.st_size, status.st_mtime_ns, info.CRC)):
            whole.append(info)
        else:
            tasks.append(Task(path, info, right_size))
    return whole, tasks


def chunks(tasks: Sequence[Task]) -> list[Sequence[Task]]:
    """Divide tasks, in their order, into chunks that are worth sending to another process."""
    groups: list[Sequence[Task]] = []
    begin = size = 0
    for position, task in enumerate(tasks):
        if position > begin and (position - begin == _CHUNK_MEMBERS or size + task.info.file_size > _CHUNK_BYTES):
            groups.append(tasks[begin:position])
            begin, size = position, 0
        size += task.info.file_size
    return [*groups, tasks[begin:]] if tasks else groups


class _Extractor:
    """A process's own view of the archive."""

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int], destination: Path, lock: Path) -> None:
        # Text, not paths: taking those apart takes longer than unpacking a small image.
        self.destination = os.fspath(destination)
        self._lock: IO[str] = lock.open("w")
        lock_file(self._lock, fcntl.LOCK_SH)
        self._stream = MemberStream(JoinedParts(paths, sizes), _READ_AHEAD_BYTES)

    def extract(self, task: Task) -> Outcome:
        target = f"{self.destination}/{task.path}"
        is_new = not task.is_there or _crc_of(target) != task.info.CRC
        if is_new:
            try:
                with open_member(self._stream, task.info) as source:
                    write_member(source, target, task.info.file_size, lambda count: None)
            except (*DAMAGE_ERRORS, PartGone) as error:
                return Outcome(None, False, str(error))
        status = os.stat(target)
        return Outcome(Entry(task.path, status.st_size, status.st_mtime_ns, task.info.CRC), is_new, None)

    def close(self) -> None:
        self._stream.close()
        self._lock.close()


def _crc_of(path: str) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


_extractor: _Extractor | None = None


def begin(paths: Sequence[Path], sizes: Sequence[int], destination: Path, lock: Path) -> None:
    """Prepare this process for :func:`extract`: open the parts, of these bytes, and hold a shared lock."""
    global _extractor
    _extractor = _Extractor(paths, sizes, destination, lock)


def end() -> None:
    """Close the files that :func:`begin` has opened in this process, if any."""
    global _extractor
    if _extractor is not None:
        _extractor.close()
        _extractor = None


def extract(tasks: Sequence[Task]) -> list[Outcome]:
    """Unpack images, or keep those that are there and whole; call :func:`begin` before.

    Raises:
        UserError: The disk has not enough space for them.
        OSError: It could not be written, or a part of the archive could not be read.
    """
    assert _extractor is not None, "begin was not called"
    needed = sum(disk_bytes(task.info.file_size) for task in tasks if not task.is_there)
    check_free_space(Path(_extractor.destination), needed)
    return [_extractor.extract(task) for task in tasks]
