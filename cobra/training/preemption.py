"""Orderly end of a run: signals of a scheduler, the keyboard, and limits of time, agreed on by all processes."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self

import torch

from cobra.util.distributed import World
from cobra.util.errors import UserError
from cobra.util.parallel import end_with_parent

# Exit codes of a run that has saved itself and can go on; sysexits' EX_TEMPFAIL, and the shell's for SIGINT.
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130

_KEYBOARD = "an interrupt from the keyboard"
_REASONS = {1: "SIGTERM", 2: "SIGUSR1", 3: "the time limit", 4: _KEYBOARD, 5: "SIGHUP", 6: "the end of the job's time"}
_NUMBERS = {signal.SIGTERM: 1, signal.SIGUSR1: 2, signal.SIGINT: 4, signal.SIGHUP: 5}
# torchrun's own, where nothing else is asked for (torch 2.14).
_TORCHRUN_SECONDS = 30.0
_TORCHRUN_FLAGS = ("--shutdown-timeout", "--shutdown_timeout")
_TORCHRUN_VARIABLE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
# Between the end of a save and that of the process.
_LEAVING_SECONDS = 2.0


class Stopped(BaseException):
    """The run has been asked to stop, and has saved its state where there was room and time for it.

    It may be raised anywhere while a run starts. As an interrupt is, it is no Exception, so that nothing takes it for a
    file that cannot be read.
    """

    def __init__(self, reason: str, step: int | None = None, saved: bool = True) -> None:
        """Describe the stop.

        Args:
            reason: Signal or limit, in words.
            step: Steps done; None where this start has not done any yet.
            saved: Everything that was done is saved.
        """
        super().__init__(reason)
        self.reason, self.step, self.saved = reason, step, saved

    @property
    def exit_code(self) -> int:
        """Exit code of the program."""
        return EXIT_INTERRUPTED if self.reason == _KEYBOARD else EXIT_STOPPED


class StopAsked(Exception):
    """All processes have agreed to stop, in the middle of something that can be left."""


class StopRequests:
    """Context manager that takes requests to stop: at once while a run starts, and between its steps when it trains.

    A second interrupt from the keyboard ends the program at once. A signal that is ignored when the context is entered,
    as SIGHUP under nohup, stays ignored.
    """

    def __init__(
        self, time_limit_minutes: float | None = None, grace_seconds: float | None = None, job_ends: float | None = None
    ) -> None:
        """Begin to count the time.

        Args:
            time_limit_minutes: Minutes that the program may run from here; None is no limit.
            grace_seconds: Seconds between a signal and the kill that follows it; None where none follows.
            job_ends: When the scheduler ends the job, in seconds since 1970; None where that is not known.
        """
        self._deadline = None if time_limit_minutes is None else time.monotonic() + 60 * time_limit_minutes
        self._grace = grace_seconds
        # A shell that has outlived its job still has the variable.
        self._job_ends = None if job_ends is None or job_ends <= time.time() else job_ends
        self._number, self._asked_at, self._training = 0, 0.0, False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, self._handle_signal)
            for number in _NUMBERS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        asked = _NUMBERS[signal.Signals(number)]
        if number == signal.SIGINT and self._number == asked:
            raise KeyboardInterrupt
        if self._number:
            return
        self._number, self._asked_at = asked, time.monotonic()
        if not self._training:
            raise Stopped(_REASONS[asked])

    def wait_for_steps(self) -> None:
        """Take requests between steps from now on: what has begun is ended in order."""
        self._training = True

    def leave_before_steps(self, world: World) -> None:
        """Raise Stopped on every process where any of them has been sent a signal; all have to call it."""
        number = int(world.max(torch.tensor(self._number, device=world.device)).item())
        if number:
            raise Stopped(_REASONS[number])

    @property
    def is_asked(self) -> bool:
        """True if this process has been sent a signal; it may be the only one."""
        return bool(self._number)

    def agreed(self, world: World, save: bool = False, reserve: float = 0.0) -> tuple[str | None, bool]:
        """Return why to stop, or None, and True if any process finds it time to save; every process has to call it.

        Args:
            world: The processes; any of them may be asked.
            save: This process finds it time to save.
            reserve: Seconds before the end of the job's time at which the run has to begin to stop.
        """
        number = self._number or (3 if self._deadline is not None and time.monotonic() >= self._deadline else 0)
        if not number and self._job_ends is not None and time.time() + reserve >= self._job_ends:
            number = 6
        number, save_now = world.max(torch.tensor([number, int(save)], device=world.device)).tolist()
        if number and not self._asked_at:
            self._asked_at = time.monotonic()
        return _REASONS.get(number), bool(save_now)

    def leave_if_asked(self, world: World, reserve: float = 0.0) -> None:
        """Raise StopAsked on every process where any of them has been asked; all have to call it."""
        reason, _ = self.agreed(world, reserve=reserve)
        if reason is not None:
            raise StopAsked(reason)

    def seconds_left(self) -> float:
        """Return the seconds from now to the kill that follows the request; infinity where none is known of."""
        left = float("inf")
        if self._number and self._grace is not None:
            left = self._asked_at + self._grace - _LEAVING_SECONDS - time.monotonic()
        if self._job_ends is not None:
            left = min(left, self._job_ends - _LEAVING_SECONDS - time.time())
        return left


def grace_seconds(environment: Mapping[str, str], parent: int) -> float | None:
    """Return the seconds that torchrun, the process `parent`, grants between a signal and the kill; None without it."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    given = _torchrun_flag(parent) or environment.get(_TORCHRUN_VARIABLE, "")
    try:
        return float(given)
    except ValueError:
        return _TORCHRUN_SECONDS


def _torchrun_flag(parent: int) -> str | None:
    """Return the value of torchrun's flag, where the system shows command lines and it is given."""
    try:
        words = Path(f"/proc/{parent}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in _TORCHRUN_FLAGS:
            return value if equals else following
    return None


def job_end(environment: Mapping[str, str]) -> float | None:
    """Return when Slurm ends the job, in seconds since 1970, where it tells.

    Raises:
        UserError: The variable is no number.
    """
    value = environment.get("SLURM_JOB_END_TIME")
    try:
        return None if not value else float(value)
    except ValueError as error:
        raise UserError(
            f"the variable SLURM_JOB_END_TIME is {value!r} and must be the seconds since 1970 at which the job ends: "
            "unset it, or correct it"
        ) from error


@contextmanager
def held_back() -> Iterator[None]:
    """Hold requests to stop back while processes are started; they begin with them held back, see :func:`shield`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shield(parent: int) -> None:
    """Take this process, a helper of `parent`, out of the reach of signals to the parent's process group.

    torchrun signals the group of each of its processes, and a terminal that of the program: a helper that ends by it
    takes the batch along that the training process waits for. It ends with its parent, or when that asks it to.
    """
    os.setsid()
    for number in _NUMBERS:
        # Forgets a request that came before this.
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)
    end_with_parent(parent)
