"""Lines that name long work while it goes on, and a quiet end where imports are interrupted."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import FrameType
from typing import NoReturn

# Seconds before the first line about a piece of work, and between two further ones.
FIRST_SECONDS = 3.0
FURTHER_SECONDS = 60.0

_EXIT_INTERRUPTED = 130


def say(text: str) -> None:
    """Print a line to the error stream of the main process at once."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


@cache
def say_once(text: str) -> None:
    """Print a line as :func:`say` does, the first time that it is given."""
    say(text)


@contextmanager
def tell_waiting(work: str, say: Callable[[str], object] = say) -> Iterator[None]:
    """Name the work inside where it takes more than a few seconds, and again every minute.

    Args:
        work: The work, as in `reading the weights`.
        say: Prints a line, from another thread; by default on the error stream of the main process.
    """
    done = threading.Event()

    def tell() -> None:
        waited, pause = 0.0, FIRST_SECONDS
        while not done.wait(pause):
            waited += pause
            say(f"{work} ..." if pause == FIRST_SECONDS else f"{work}: {waited / 60:.0f} min so far ...")
            pause = FURTHER_SECONDS

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def loading() -> Iterator[None]:
    """Import modules inside: told where that takes long, and an interrupt ends the program at once.

    Raised in the middle of an import, KeyboardInterrupt comes out as a traceback of a library, or as another error.
    """
    takes = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    takes = takes and threading.current_thread() is threading.main_thread()
    if takes:
        signal.signal(signal.SIGINT, _leave)
    try:
        with tell_waiting("loading PyTorch and the program", say_once):
            yield
    finally:
        if takes:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(Exception):
        sys.stdout.flush()
        say("interrupted")
    os._exit(_EXIT_INTERRUPTED)
