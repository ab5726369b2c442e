"""Map a function over items in several processes: ordered results, bounded memory, no process left behind."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from cobra.util.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items that wait for, or are with, each process: enough that none is idle while results are taken.
_AHEAD = 4
_ORPHAN_CHECK_SECONDS = 0.5


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """Yield `function(item)` of every item, in order.

    Items are taken as results are, a few ahead, so neither needs to fit into memory. Where this process is killed, the
    others end by themselves within a second; an interrupt from the keyboard reaches this process only.

    Args:
        function: A function of a module; it, the items and the results go between processes by pickle.
        items: Its arguments; an item should be worth some milliseconds at least.
        workers: Processes; with 1 or fewer, everything happens in this one.
        initializer: Called once in each process before its first item, with `initargs`.
        initargs: See there.

    Raises:
        UserError: A process was killed from outside, for want of memory say.
        Exception: Whatever the function raises; items that no process has begun are dropped.
    """
    if workers <= 1:
        if initializer is not None:
            initializer(*initargs)
        yield from map(function, items)
        return
    # Started anew instead of forked: torch, rich and Arrow have threads, which do not survive a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _prepare_worker, (os.getpid(), initializer, initargs))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            f"one of the {workers} worker processes was killed, for want of memory perhaps: run the same command again "
            "with --num_workers 1; what is done is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker(parent: int, initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    """Prepare a worker process."""
    # The keyboard's interrupt goes to all processes; the parent decides what comes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
    if initializer is not None:
        initializer(*initargs)


def end_with_parent(parent: int) -> None:
    """End this process soon after its parent has: one that is killed cannot tell. `parent` is its id at the start."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_ORPHAN_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
