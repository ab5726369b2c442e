"""Fetch LLaVA-CoT-100k from the Hugging Face hub: the rows and the parts of the image archive, all of one commit."""

import json
import math
import queue
import shutil
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cobra.preprocessing.archives import check_free_space, is_whole
from cobra.preprocessing.fetch import list_dataset
from cobra.preprocessing.llava_cot.archive.joined_parts import PART, RECORDS, WHOLE
from cobra.preprocessing.progress import Bar, ByteBars
from cobra.preprocessing.published_files import COT_ID, COT_REPO, COT_ROWS, DATASET_REGISTRY
from cobra.preprocessing.transfer import Remote, Unreachable, bytes_there, fetch_file, hash_file
from cobra.util.errors import UserError, disk_errors
from cobra.util.files import write_json
from cobra.util.program import command_line

_RECORD = Path(RECORDS) / "fetched.json"
_WORKSPACE = ".fetch"
# Parts that are fetched at once: one connection seldom fills the line.
_CONNECTIONS = 4
# Bytes between two looks at the free space while fetching.
_SPACE_BYTES = 2**28


def download_publication(
    folder: Path, revision: str = "main", token: str | None = None, skip: Collection[str] = ()
) -> None:
    """Fetch `train.jsonl` and every `image.zip.part-*` into `folder`; a rerun resumes where this stopped.

    Each file is checked by size and hash once, also one that was put there by other means; `.prepare/fetched.json`
    remembers which. A wrong one is named and fetched again. HF_ENDPOINT is respected. Where the hub cannot be reached
    and every file is there, they are taken as they are.

    Args:
        folder: The dataset's folder; made here.
        revision: Branch, tag or commit of the dataset.
        token: The hub's token, not needed; without one HF_TOKEN counts.
        skip: Names of files that are not needed: parts that were unpacked and deleted.

    Raises:
        UserError: The hub refuses, fails time and again or cannot be reached, the disk is too small, or a part that
            was unpacked and deleted has changed on the hub.
    """
    with disk_errors(f"LLaVA-CoT-100k could not be written to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            publication = _compare_with_hub(folder, revision, token, skip)
        except Unreachable as error:
            _check_without_hub(folder, skip, error)
            ByteBars().print_line(f"{error}; the files in {folder} are taken as they are")
        else:
            publication.fetch()
            shutil.rmtree(folder / _WORKSPACE, ignore_errors=True)


def bytes_to_come(folder: Path, revision: str = "main", token: str | None = None, skip: Collection[str] = ()) -> int:
    """Return how many bytes :func:`download_publication` would fetch; a file of the right size counts as right.

    Raises:
        UserError: As there.
    """
    try:
        return _compare_with_hub(folder, revision, token, skip).bytes_to_come
    except Unreachable as error:
        _check_without_hub(folder, skip, error)
        return 0


@dataclass
class _Record:
    """Record of the files that earlier calls found right; kept on the disk."""

    commit: str = ""
    published: list[str] = field(default_factory=list)
    """Names of all files of the commit that belong here."""
    files: dict[str, dict[str, int | str]] = field(default_factory=dict)
    """By name, each file that was found right: size in bytes, mtime_ns and digest. Deleted parts stay."""

    @classmethod
    def read(cls, folder: Path) -> "_Record":
        try:
            return cls(**json.loads((folder / _RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, folder: Path) -> None:
        write_json(folder / _RECORD, asdict(self))

    def knows(self, path: Path, remote: Remote) -> bool:
        """Return True if the file is the one that was found right."""
        return path.is_file() and self.files.get(path.name) == _entry(path, remote)


def _entry(path: Path, remote: Remote) -> dict[str, int | str]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "digest": remote.digest or ""}


def _compare_with_hub(folder: Path, revision: str, token: str | None, skip: Collection[str]) -> "_Publication":
    """List the files of the hub and compare them with the record of those in the folder."""
    snapshot = list_dataset(COT_REPO, revision, token)
    files = {name: remote for name, remote in snapshot.files.items() if name == COT_ROWS or PART.fullmatch(name)}
    parts = files.keys() - {COT_ROWS}
    if len(parts) == len(files) or not parts:
        raise UserError(
            f"revision {revision} of {COT_REPO} holds {', '.join(sorted(files)) or 'nothing'} of {COT_ROWS} and "
            f"{WHOLE}.part-aa and on, and both are needed. Give --revision another branch, tag or commit."
        )
    extra = sorted(path.name for path in folder.glob(f"{WHOLE}.part-*") if path.name not in parts)
    if extra:
        raise UserError(
            f"{folder} holds {', '.join(extra)}, which revision {revision} of {COT_REPO} does not have: move it away "
            "and run the same command again"
        )
    record = _Record.read(folder)
    if record.commit not in ("", snapshot.commit):
        _report_changes(record, snapshot.commit, files, skip)
    record.commit, record.published = snapshot.commit, sorted(files)
    whole = folder / WHOLE
    if whole.is_file() and whole.stat().st_size == sum(files[name].size or 0 for name in parts):
        skip = {*skip, *parts}
    return _Publication(folder, {name: files[name] for name in sorted(files) if name not in skip}, record)


def _report_changes(record: _Record, commit: str, files: Mapping[str, Remote], skip: Collection[str]) -> None:
    """Print the differences since the last call; refuse where images of deleted parts do not match the new rows."""
    known = record.files
    changed = [name for name in sorted(files.keys() & known) if known[name].get("digest") != files[name].digest]
    gone = [name for name in changed if name in skip]
    if gone:
        raise UserError(
            f"{COT_REPO} has moved from commit {record.commit} to {commit} since the last call, and {', '.join(gone)}, "
            f"unpacked and deleted here, has changed. Give --revision {record.commit} to go on with what you have, or "
            "move the images away to begin anew."
        )
    what = f"{', '.join(changed)} changed and will be fetched again" if changed else "none of the files changed"
    ByteBars().print_line(f"{COT_REPO} has moved from commit {record.commit} to {commit} since the last call: {what}")


def _check_without_hub(folder: Path, skip: Collection[str], error: Unreachable) -> None:
    """Check that the files that are there suffice."""
    names = _Record.read(folder).published or [component["name"] for component in DATASET_REGISTRY[COT_ID]]
    missing = [name for name in names if name not in skip and not (folder / name).is_file()]
    if (folder / WHOLE).is_file():
        missing = [name for name in missing if name == COT_ROWS]
    if missing:
        raise UserError(
            f"{error}. {folder} lacks {_shown(missing)}. Run the same command where the hub can be reached, or fetch "
            f"there ({command_line('fetch', 'none', '--datasets', COT_ID)}), copy the folder here and prepare with "
            "--download false."
        ) from error


def _shown(names: Sequence[str]) -> str:
    """Return the names, of many the first two, the last and their number."""
    return ", ".join(names) if len(names) < 5 else f"{', '.join(names[:2])} ... {names[-1]} ({len(names)} files)"


@dataclass
class _Publication:
    """The files that are wanted in a folder."""

    folder: Path
    files: dict[str, Remote]
    record: _Record
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def bytes_to_come(self) -> int:
        total = 0
        for name, remote in self.files.items():
            path, size = self.folder / name, remote.size or 0
            total += 0 if is_whole(path, size) else size - bytes_there(remote, path, self.folder / _WORKSPACE)
        return total

    def fetch(self) -> None:
        """Fetch all files; see :func:`download_publication`."""
        left = self.bytes_to_come
        check_free_space(self.folder, left)
        # The folder may be one that is only read.
        if self.record != _Record.read(self.folder):
            self.record.write(self.folder)
        todo = [name for name, remote in self.files.items() if not self.record.knows(self.folder / name, remote)]
        if not todo:
            return
        total = sum(remote.size or 0 for remote in self.files.values())
        with ByteBars() as bars, bars.bar("LLaVA-CoT-100k", total, total - left) as bar:
            gauge = _Gauge(self.folder, left, bar, self.stop)
            self._run_in_threads(todo, lambda name: self._provide_file(name, bars, gauge))

    def _run_in_threads(self, names: list[str], work: Callable[[str], None]) -> None:
        """Do `work` for all names, some at once; the first error ends it all and is raised."""
        todo: queue.SimpleQueue[str] = queue.SimpleQueue()
        outcomes: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        for name in names:
            todo.put(name)

        def run() -> None:
            while not self.stop.is_set():
                try:
                    work(todo.get_nowait())
                    outcomes.put(None)
                except queue.Empty:
                    return
                except Exception as error:
                    outcomes.put(error)

        # Daemons, so that an interrupt need not wait for a connection that hangs: what has come is on the disk.
        threads = [threading.Thread(target=run, daemon=True) for _ in range(_CONNECTIONS)]
        try:
            for thread in threads:
                thread.start()
            for _ in names:
                if error := outcomes.get():
                    raise error
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(0.5)

    def _provide_file(self, name: str, bars: ByteBars, gauge: "_Gauge") -> None:
        """Fetch one file unless it is there and right, and remember it."""
        path, remote = self.folder / name, self.files[name]
        if path.is_file() and (problem := self._file_problem(path, remote, bars)):
            bars.print_line(f"{path} {problem}: it is fetched again")
            if path.stat().st_size == remote.size:
                gauge.move(-path.stat().st_size)
            path.unlink()
        if not path.is_file():
            fetch_file(remote, path, self.folder / _WORKSPACE, bars, gauge.move)
        with self.lock:
            self.record.files[name] = _entry(path, remote)
            self.record.write(self.folder)

    def _file_problem(self, path: Path, remote: Remote, bars: ByteBars) -> str | None:
        """Return what is wrong with a file that is there; None if it is right."""
        size, hasher = path.stat().st_size, remote.hasher()
        if size != remote.size:
            return f"has {size} bytes instead of {remote.size}"
        if hasher is None:
            return None
        with bars.bar(f"checking {path.name}", size, least=math.inf) as bar:

            def advance(count: int) -> None:
                bar.advance(count)
                if self.stop.is_set():
                    raise _Stopped

            digest = hash_file(hasher, path, advance)
        return None if digest == remote.digest else f"has another content than the hub's (hash {digest})"


class _Stopped(Exception):
    """Another thread has failed, or the user has interrupted."""


class _Gauge:
    """Counts what is left of all files, for the bar and for the free space."""

    def __init__(self, folder: Path, left: int, bar: Bar, stop: threading.Event) -> None:
        self._folder, self._left, self._bar, self._stop = folder, left, bar, stop
        self._lock = threading.Lock()
        self._next_look = left - _SPACE_BYTES

    def move(self, count: int) -> None:
        """Count bytes that have come, negative where some are given up; refuse where the disk is too small now."""
        if self._stop.is_set():
            raise _Stopped
        self._bar.advance(count)
        with self._lock:
            self._left -= count
            if self._left <= self._next_look:
                self._next_look = self._left - _SPACE_BYTES
                check_free_space(self._folder, self._left)
