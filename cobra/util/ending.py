"""Orderly end of a program by SIGTERM or SIGHUP: temporary files are removed, as after an interrupt."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

# The first is a scheduler's and a shell's `kill`; the second that of a terminal which closes.
_NUMBERS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """The program is to end; as an interrupt is, it is no Exception, so that nothing takes it for a failed piece."""

    def __init__(self, number: int) -> None:
        """Remember the signal."""
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Handler:
    """Raises :class:`Terminated` in the process that it was made in, once."""

    def __init__(self) -> None:
        self._pid, self._is_asked = os.getpid(), False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # One that was forked ends as if there were no handler.
            _end_by(number)
        # A second request must not break off what the first one lets end.
        if not self._is_asked:
            self._is_asked = True
            raise Terminated(number)


@contextmanager
def end_in_order() -> Iterator[None]:
    """Let a request to end run what stands in `finally` inside, and then end the program by that signal.

    A signal that somebody handles or ignores already, as SIGHUP under nohup, stays so. For work of the main thread
    alone: while others wait inside native code or in a pool of threads, Python handles no signal.
    """
    replaced = []
    if threading.current_thread() is threading.main_thread():
        replaced = [number for number in _NUMBERS if signal.getsignal(number) is signal.SIG_DFL]
    handler = _Handler()
    for number in replaced:
        signal.signal(number, handler)
    try:
        yield
    except Terminated as request:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        _end_by(request.number)
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def _end_by(number: int) -> NoReturn:
    """End this process by a signal, so that whoever started it sees what ended it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    # Where the signal is blocked: a shell's code for it.
    os._exit(128 + number)
