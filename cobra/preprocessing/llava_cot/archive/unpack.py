"""Unpack the images of the archive to where the rows' paths find them."""

import fcntl
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cobra.preprocessing.archives import (
    Refusal,
    check_free_space,
    check_total,
    disk_bytes,
    member_path,
    remove_temporaries,
    sort_out_members,
    split_linked,
)
from cobra.preprocessing.datasets.rows import source_of
from cobra.preprocessing.llava_cot.archive import extract_worker
from cobra.preprocessing.llava_cot.archive.extract_worker import Manifest, Outcome, Task, chunks, find_whole
from cobra.preprocessing.llava_cot.archive.integrity import ImageArchive, inspect_archive
from cobra.preprocessing.llava_cot.archive.joined_parts import RECORDS
from cobra.preprocessing.llava_cot.archive.part_deletion import PartLedger, mark_wanted_parts
from cobra.preprocessing.progress import byte_progress
from cobra.util.errors import UserError, disk_errors
from cobra.util.mounts import lock_file
from cobra.util.parallel import parallel_map

# Only images are unpacked: a member `train.jsonl` in an archive without a top folder would overwrite the rows.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"}

# Halves of files that macOS puts into archives; they bear the names of images.
_LITTER = "__MACOSX/"

# Which images are whole, for reruns.
MANIFEST = "unpacked.jsonl"

# A process takes half a second to start.
_CHUNKS_WORTH_A_PROCESS = 8

# Rows that are looked up by their endings to find candidates for the prefix; all others only count.
_PROBED = 50
# Top folders of the archive that are tried besides.
_TOPS = 20


@dataclass
class Unpacked:
    """Outcome of unpacking."""

    prefix: str
    """The folders in front of the rows' paths in the archive, e.g. `images/`; empty if there are none."""
    images: int
    """Images of the archive that are whole on the disk now."""
    new: int
    """Those of them that this call wrote."""
    other_files: int
    """Members that were left alone: no images, outside the prefix, or of sources that were not asked for."""
    refused: list[Refusal] = field(default_factory=list)
    """Members that are not safe to unpack."""
    damaged: list[Refusal] = field(default_factory=list)
    """Images that could not be read, with the parts that hold them and what to do."""


def find_prefix(members: Collection[str], images: Sequence[str]) -> str | None:
    """Find the folders in front of the rows' image paths in the archive, whose files are `members`.

    Returns:
        The prefix under which most of `images` are members, the shortest of equals; None if none of them is.
    """
    endings: dict[str, list[str]] = {}
    for name in members:
        endings.setdefault(name.rsplit("/", 1)[-1], []).append(name)
    candidates = {
        name.removesuffix(image)
        for image in images[:_PROBED]
        for name in endings.get(image.rsplit("/", 1)[-1], ())
        if name == image or name.endswith("/" + image)
    }
    # Where the first rows' images are all missing, the top folders are worth a try.
    tops = Counter(name.partition("/")[0] + "/" for name in members if "/" in name)
    candidates |= {"", *(top for top, _ in tops.most_common(_TOPS))}
    return _best(candidates, lambda prefix: sum(prefix + image in members for image in images))


def find_root(folder: Path, images: Sequence[str]) -> str | None:
    """Find the subfolder of `folder` under which most of `images` are files.

    Returns:
        The empty string, or a path with a slash at its end such as `images/`; None if none of `images` is a file.
    """
    names = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    # `unzip` into a folder `images` of an archive that has one too.
    candidates = ["", *(f"{name}/" for name in names), *(f"{name}/{name}/" for name in names)]
    return _best(candidates, lambda prefix: sum(os.path.isfile(folder / (prefix + image)) for image in images))


def _best(candidates: Iterable[str], score: Callable[[str], int]) -> str | None:
    scores = {candidate: score(candidate) for candidate in candidates}
    best = min(scores, key=lambda candidate: (-scores[candidate], len(candidate), candidate))
    return best if scores[best] else None


def unpack_images(
    folder: Path,
    destination: Path,
    images: Sequence[str],
    *,
    keep_parts: bool = True,
    workers: int = 1,
    sources: Collection[str] = (),
) -> Unpacked | None:
    """Unpack the images of the archive in `folder` below `destination`, so that the rows' paths are theirs.

    Each image is checked by its CRC and appears under its name only when it is whole. A rerun resumes where the last
    one stopped: images that it knows from `.prepare/unpacked.jsonl` by size and time of change are not read again,
    others that are there are checked by their CRC and taken or written anew. Unsafe and damaged members are left out
    and returned. One call at a time for a folder.

    Without `keep_parts` a part is deleted once every image in it is whole and flushed to disk. Members that are never
    unpacked (no images, unsafe, outside the images' folder) do not hold it back; damaged images, those that a link of
    the user keeps out, and images of sources that are not asked for, do. What is needed to go on is in `.prepare`.

    Args:
        folder: Folder of the parts.
        destination: The image root.
        images: Image paths of rows, to find the archive's prefix with.
        keep_parts: Keep the parts.
        workers: Processes that unpack; with 1 everything happens in this one.
        sources: First folders of the images to unpack; empty is all.

    Returns:
        The outcome; None if there is no archive or none of `images` is in it.

    Raises:
        UserError: The archive is incomplete or out of order, cannot be read, would unfold to an absurd size, does not
            fit on the disk, or the folder cannot be written to.
    """
    with disk_errors(f"unpacking into {destination} stopped"):
        _wait_for_workers(folder)
        archive = inspect_archive(folder)
        if archive is None:
            return None
        members, refused = sort_out_members(archive.members, archive.directory_start)
        names = {member_path(info.filename): info for info in members}
        prefix = find_prefix(names.keys(), images)
        if prefix is None:
            return None
        archived = {name.removeprefix(prefix): info for name, info in names.items() if _is_image(name, prefix)}
        safe, linked = split_linked(destination, archived)
        wanted = {path: info for path, info in safe.items() if not sources or source_of({"image": path}) in sources}
        result = Unpacked(prefix, len(wanted), 0, len(members) - len(wanted), refused + linked)
        total = sum(info.file_size for info in wanted.values())
        check_total(f"the archive of images ({archive.paths[0]} ...)", archive.starts[-1], total)
        kept = [info for path, info in archived.items() if path not in wanted]
        ledger = None if keep_parts else PartLedger(folder, archive, wanted.values(), kept)
        manifest = Manifest(folder / RECORDS / MANIFEST)
        _Unpacking(folder, destination, archive, manifest, ledger, result).run(wanted, workers)
    return result


def _is_image(name: str, prefix: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return name.startswith(prefix) and suffix in IMAGE_SUFFIXES and not name.startswith(_LITTER)


def _wait_for_workers(folder: Path) -> None:
    """Wait until the processes of a run that was killed have ended, which takes them a second at most."""
    lock = folder / RECORDS / extract_worker.WORKERS_LOCK
    try:
        lock.parent.mkdir(exist_ok=True)
        with lock.open("w") as file:
            lock_file(file, fcntl.LOCK_EX)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error}): nothing was unpacked. Make it writable, or give another folder "
            "with --dataset_root"
        ) from error


@dataclass
class _Unpacking:
    """One call of :func:`unpack_images` at work."""

    folder: Path
    destination: Path
    archive: ImageArchive
    manifest: Manifest
    ledger: PartLedger | None
    result: Unpacked

    def run(self, wanted: dict[str, zipfile.ZipInfo], workers: int) -> None:
        """Unpack images (by path) that are not whole yet, in the order of the archive, and count them in the result."""
        whole, tasks = find_whole(self.destination, wanted, self.manifest)
        done = sum(info.file_size for info in whole)
        left = sum(task.info.file_size for task in tasks)
        if self.ledger is not None:
            self.ledger.release(whole)
        damaged: list[zipfile.ZipInfo] = []
        if tasks:
            self._prepare_disk(tasks)
            with byte_progress("unpacking images", done + left, done) as advance:
                for chunk, outcomes in self._extract_chunks(tasks, workers):
                    damaged += self._record_outcomes(chunk, outcomes)
                    advance(sum(task.info.file_size for task in chunk))
        self.result.images -= len(damaged)
        mark_wanted_parts(self.folder, self.archive, damaged)

    def _prepare_disk(self, tasks: Sequence[Task]) -> None:
        """Check that the images fit on a disk that can be written to, and remove what killed processes have left."""
        try:
            self.destination.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.destination):
                pass
        except OSError as error:
            raise UserError(
                f"{self.destination} cannot be written to ({error}): nothing was unpacked. Make it writable and run "
                "the same command again"
            ) from error
        remove_temporaries(self.destination / name for name in {task.path.rpartition("/")[0] for task in tasks})
        absent = [task.info for task in tasks if not task.is_there]
        needed = sum(disk_bytes(info.file_size) for info in absent)
        if self.ledger is not None and self.folder.stat().st_dev == self.destination.stat().st_dev:
            needed = self.ledger.space_needed(absent)
        check_free_space(self.destination, needed)

    def _extract_chunks(self, tasks: Sequence[Task], workers: int) -> Iterable[tuple[Sequence[Task], list[Outcome]]]:
        """Yield every chunk of the tasks with its outcomes."""
        batches = chunks(tasks)
        lock = self.folder / RECORDS / extract_worker.WORKERS_LOCK
        initargs = (self.archive.paths, self.archive.sizes, self.destination, lock)
        try:
            workers = min(workers, 1 + len(batches) // _CHUNKS_WORTH_A_PROCESS)
            results = parallel_map(extract_worker.extract, batches, workers, extract_worker.begin, initargs)
            yield from zip(batches, results, strict=True)
        finally:
            extract_worker.end()

    def _record_outcomes(self, chunk: Sequence[Task], outcomes: Sequence[Outcome]) -> list[zipfile.ZipInfo]:
        """Record the outcomes of a chunk, delete parts that are done with, and return the damaged members."""
        damaged, whole = [], []
        for task, outcome in zip(chunk, outcomes, strict=True):
            if outcome.problem is None:
                whole.append(task.info)
            else:
                damaged.append(task.info)
                self.result.damaged.append(Refusal(task.info.filename, self._explain(task.info, outcome.problem)))
            self.result.new += outcome.is_new
        self.manifest.add([outcome.entry for outcome in outcomes if outcome.entry is not None])
        if self.ledger is not None:
            self.ledger.release(whole)
        return damaged

    def _explain(self, info: zipfile.ZipInfo, problem: str) -> str:
        paths = [self.archive.paths[part] for part in self.archive.parts_of(info)]
        names = " and ".join(path.name for path in paths)
        gone = " and ".join(path.name for path in paths if not path.is_file())
        if gone:
            return (
                f"is lost or altered, and {gone}, which held it, was deleted when it was unpacked: the next run with "
                "--download true fetches it again"
            )
        return f"cannot be read from {names}: {problem}; delete {names} and run again with --download true"
