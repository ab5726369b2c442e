"""Exclusive use of a folder by one process, also where machines share it; others learn who holds it.

The folder's file `lock` names its holder, who holds the system's lock on it, which is gone with its holder, and touches
it every few seconds: that tells where no lock is to be had, or none to trust, as on some network file systems.
"""

import errno
import json
import os
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from cobra.util.errors import UserError, file_problem
from cobra.util.files import refuse_link
from cobra.util.mounts import LACKING
from cobra.util.printable import printable

LOCK = "lock"

# Between two touches.
_BEAT_SECONDS = 10.0
# A holder on another machine that has not touched its file for so long is gone.
SILENT_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_TRY_SECONDS = 0.2
# Read at most of a file that a stranger may have left.
_MOST_BYTES = 65_536
_SHOWN = 300


@dataclass(frozen=True)
class Holder:
    """A process that works in a folder."""

    host: str
    boot: str
    """Random id of the machine's boot."""
    processes: str
    """Namespace of process numbers that `pid` belongs to."""
    pid: int
    born: str
    """Start of the process, as its kernel counts; numbers of processes are used again."""
    started: str
    command: str
    token: str
    """Tells this hold from all others."""

    @classmethod
    def this_process(cls) -> "Holder":
        """Return this one, with a new token."""
        return cls(
            host=socket.gethostname(),
            boot=_boot_id(),
            processes=_process_namespace(),
            pid=os.getpid(),
            born=_start_of_process(os.getpid()),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            token=secrets.token_hex(8),
        )

    def __str__(self) -> str:
        host, started, command = (printable(text, _SHOWN) for text in (self.host, self.started, self.command))
        return f"process {self.pid} on {host}, begun {started}: {command}"

    def is_here(self) -> bool:
        """Return True if this process can tell whether the holder lives."""
        return bool(self.boot) and (self.boot, self.processes) == (_boot_id(), _process_namespace())

    def lives(self) -> bool:
        """Return True if it is a process of this machine that has not ended."""
        return bool(self.born) and _start_of_process(self.pid) == self.born


@contextmanager
def hold(folder: Path, what: str, say: Callable[[str], object] = print) -> Iterator["Hold"]:
    """Be the only one in a folder for a while; it and its parents are made, and removed if nothing is put there.

    `what` is the work, for the error: `another run is training`. `say` gets the reason of a delay, where a holder on
    another machine may be gone.

    Raises:
        UserError: Somebody is there: who, and what to do about it; or the folder takes no files, or the file is a link.
    """
    claim = Hold(folder / LOCK)
    try:
        try:
            claim.take(what, say)
        except OSError as error:
            # What a write raises names no file.
            error.filename = error.filename or str(folder / LOCK)
            raise UserError(file_problem(error) or f"{folder} cannot be written to ({error})") from error
        yield claim
    finally:
        claim.release()


class Hold:
    """A claim on a folder; made by :func:`hold`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._me = Holder.this_process()
        self._made: list[Path] = []
        self._is_taken = False
        self._ended = threading.Event()
        self._lock: FileLock | None = None

    def take(self, what: str, say: Callable[[str], object]) -> None:
        """Take the folder; see :func:`hold`."""
        folder = self._path.parent
        while missing := [path for path in (folder, *folder.parents) if not path.exists()]:
            if self._make(missing):
                break
        else:
            self._take_over(what, say)
        self._is_taken = True
        threading.Thread(target=self._keep_touching, daemon=True).start()

    def _make(self, missing: list[Path]) -> bool:
        """Make the folder, taken already; return False where another start was first to make its topmost parent.

        It is made beside its place, with its lock, and moved there whole: no other start finds it without its holder,
        who therefore is the one to remove it.
        """
        place, top = self._path, missing[-1]
        beside = top.with_name(f".{LOCK}-{self._me.token}")
        self._path = beside / place.relative_to(top)
        try:
            self._path.parent.mkdir(parents=True)
            self._try_lock()
            self._write_record()
            beside.rename(top)
        except OSError as error:
            self._release_lock()
            shutil.rmtree(beside, ignore_errors=True)
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return False
            error.filename = str(place.parent)
            raise
        finally:
            self._path = place
        self._made = missing
        return True

    def _take_over(self, what: str, say: Callable[[str], object]) -> None:
        """Take the folder, which is there."""
        is_locked = self._try_lock()
        problem = _reason_to_refuse(self._path, is_locked, say)
        if problem is not None:
            raise UserError(f"{what} in {self._path.parent} already: {problem}")
        if is_locked is False:
            # The holder's machine has crashed, and the file server keeps its lock: a new file has a new one.
            self._path.unlink(missing_ok=True)
            self._try_lock()
        self._write_record()

    def confirm(self, what: str) -> None:
        """Raise a UserError if another process has taken the folder at the same moment, where there are no locks."""
        holder = _read_holder(self._path)
        if holder is None or holder.token != self._me.token:
            raise UserError(f"{what} in {self._path.parent} already: {holder or 'its file of that name is gone'}")

    def release(self) -> None:
        """Leave the folder."""
        self._ended.set()
        # Not in a process that was forked from its holder.
        if self._is_taken and self._me.pid == os.getpid() and _read_holder(self._path) == self._me:
            with suppress(OSError):
                self._path.unlink()
        self._release_lock()
        with suppress(OSError):
            for path in self._made:
                path.rmdir()

    def _try_lock(self) -> bool | None:
        """Open the file, and try for the system's lock on it; None where the file system has none."""
        refuse_link(self._path)
        # Where there are no locks, the touches tell. A holder that leaves may delete the file between two tries.
        self._lock = FileLock(self._path, _TRY_SECONDS, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire()
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in LACKING:
                raise
            return None
        return True

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _write_record(self) -> None:
        # In place, so that nobody finds it empty.
        with self._path.open("r+b") as file:
            file.write(json.dumps(asdict(self._me)).encode())
            file.truncate()

    def _keep_touching(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            # A disk that is full or away for a moment must not end the work.
            with suppress(OSError):
                try:
                    os.utime(self._path)
                except OSError as error:
                    if error.errno not in LACKING:
                        raise
                    self._write_record()


def _reason_to_refuse(path: Path, is_locked: bool | None, say: Callable[[str], object]) -> str | None:
    """Return why the folder cannot be taken; None where it can."""
    holder = _read_holder(path)
    if holder is None:
        return "who it is has not been written down yet" if is_locked is False else None
    if holder.is_here():
        # The kernel knows, with and without locks.
        return f"{holder}. Wait until it has ended, or end it" if is_locked is False or holder.lives() else None
    if is_locked and holder.boot == _boot_id():
        # It was in another container of this machine, and has ended.
        return None
    age = _seconds_since_touch(path)
    if age >= SILENT_SECONDS:
        return None
    if is_locked is not False:
        say(f"{path.parent} may be in use: waiting up to {SILENT_SECONDS - age:.0f} s for a sign of {holder}")
        if _stays_silent(path, SILENT_SECONDS - age):
            return None
    return f"{holder}. Wait until it has ended, or end it there"


def _seconds_since_touch(path: Path) -> float:
    """Return the seconds since a file was touched, by the clock of who keeps it: machines may disagree."""
    with tempfile.TemporaryFile(dir=path.parent, buffering=0) as probe:
        probe.write(b"now")
        return max(0.0, os.fstat(probe.fileno()).st_mtime - path.stat().st_mtime)


def _stays_silent(path: Path, seconds: float) -> bool:
    """Watch the file of a holder on another machine; return whether it is not touched, or is deleted."""
    touched, end = path.stat().st_mtime_ns, time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        try:
            # Opened, so that a network file system asks its server.
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_mtime_ns != touched:
                    return False
        except FileNotFoundError:
            return True
    return True


def _read_holder(path: Path) -> Holder | None:
    """Return the holder that a file names; None where it names none."""
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(_MOST_BYTES))
        holder = Holder(**values)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts = [value for name, value in asdict(holder).items() if name != "pid"]
    return holder if type(holder.pid) is int and all(isinstance(text, str) for text in texts) else None


def _boot_id() -> str:
    """Return what this boot of this machine is called; empty where nothing tells."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _process_namespace() -> str:
    """Return what the numbering of processes is called that this one is in; containers have their own."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _start_of_process(pid: int) -> str:
    """Return when a process began, in its kernel's count; empty where there is none of that number, or a dead one."""
    try:
        # `number (name) state ... starttime`, see proc(5).
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
