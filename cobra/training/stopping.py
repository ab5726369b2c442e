"""Ending a run in order: signals of a scheduler, the keyboard, and a time limit, agreed on by all processes."""

import signal
import time
from types import FrameType, TracebackType
from typing import Self

import torch

from cobra.util.distributed import World

# Exit codes of a run that has saved itself and can go on; sysexits' EX_TEMPFAIL, and the shell's for SIGINT.
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130

_REASONS = {1: "SIGTERM", 2: "SIGUSR1", 3: "the time limit", 4: "an interrupt from the keyboard"}
_NUMBERS = {signal.SIGTERM: 1, signal.SIGUSR1: 2, signal.SIGINT: 4}


class Stopped(Exception):
    """The run has been asked to stop, and has saved its state where there was room for it."""

    def __init__(self, reason: str, step: int, saved: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.step = step
        self.saved = saved

    @property
    def exit_code(self) -> int:
        """What the program ends with."""
        return EXIT_INTERRUPTED if self.reason == _REASONS[4] else EXIT_STOPPED


class StopRequests:
    """Context manager that takes requests to stop while a run trains.

    A second interrupt from the keyboard ends the program at once.
    """

    def __init__(self, world: World, time_limit_minutes: float | None = None, started: float | None = None) -> None:
        """Prepare.

        Args:
            world: The processes; any of them may be asked.
            time_limit_minutes: Of the whole program; None is none.
            started: Of the program, as `time.monotonic` tells it; by default now.
        """
        self._world = world
        began = time.monotonic() if started is None else started
        self._deadline = None if time_limit_minutes is None else began + 60 * time_limit_minutes
        self._number = 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._take) for number in _NUMBERS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._number == _NUMBERS[signal.SIGINT]:
            raise KeyboardInterrupt
        self._number = _NUMBERS[signal.Signals(number)]

    def agreed(self, save: bool = False) -> tuple[str | None, bool]:
        """Return why to stop, or None, and whether any process finds it time to save.

        The same on every process; all have to call it at the end of a step.
        """
        late = self._deadline is not None and time.monotonic() >= self._deadline
        asked = torch.tensor([self._number or (3 if late else 0), int(save)], device=self._world.device)
        number, save_now = self._world.max(asked).tolist()
        return _REASONS.get(number), bool(save_now)
