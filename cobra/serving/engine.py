"""The engine: one thread that owns a model and writes all answers together.

Every row of the running batch is one answer with a state of constant size. Between two steps answers that are done
leave, prompts that have been read join, and more of what waits is read; so a request of any length is answered beside
any others, and its answer depends on none of them, up to rounding.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

import torch

from cobra.models.generation.decoder import threads_for
from cobra.models.generation.memory import rows_that_fit
from cobra.models.vlms import CobraVLM
from cobra.serving.batch import Batch
from cobra.serving.jobs import BusyError, CancelledError, Job, Solo, Work
from cobra.serving.reading import ReadingRoom

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

MAX_ROWS = 64
"""Answers that are written together at most, by default."""
MAX_WAITING = 256
"""Requests that wait to be read at most, by default."""

# Readers are woken at most so often, except by a first token and by an end: a small model writes thousands of tokens a
# second, and a message for each would take longer than to write it. Each has its share of the messages of a second, so
# that many readers don't slow down what they wait for, and none waits longer than a movement takes to be seen.
_FLUSH_SECONDS, _FLUSH_SHARE, _FLUSH_LONGEST = 0.02, 0.005, 0.1
# Share of the last request in the mean time of a request.
_LAST = 0.1


class Engine:
    """Writes answers with a model in evaluation mode, which nobody else may use meanwhile.

    All methods may be called from any thread; what they are given is called in the engine's own.
    """

    def __init__(self, vlm: CobraVLM, max_rows: int = MAX_ROWS, max_waiting: int = MAX_WAITING) -> None:
        """Start the thread.

        Args:
            vlm: The model.
            max_rows: Answers that are written together at most; fewer where memory has not the room.
            max_waiting: Requests that wait to be read at most.
        """
        self._vlm, self._llm = vlm, vlm.llm_backbone.llm
        self.max_rows = rows_that_fit(self._llm.config, vlm.device, max_rows)
        self._max_waiting = max_waiting
        self._inbox: deque[Callable[[], None]] = deque()
        self._news = threading.Event()
        # Held to change these two and to add to the inbox: no message comes after the thread's last look at it.
        self._lock = threading.RLock()
        self._closed = False
        self._unread = 0
        self._usual_seconds = 0.0
        self._room = ReadingRoom(vlm)
        self._solos: deque[Solo] = deque()
        self._running: Solo | None = None
        self._batch = Batch(vlm)
        self._flushed = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Put a request in line.

        Raises:
            BusyError: As many wait as may.
            CancelledError: The engine has been closed.
        """
        with self._lock:
            if self._unread >= self._max_waiting and not self._closed:
                usual = self._usual_seconds * self._unread / self.max_rows
                raise BusyError(self._unread, min(max(round(usual), 1), 60))
            self._post(lambda: self._take(work))
            self._unread += 1

    def cancel(self, work: Work) -> None:
        """End a request, if it has not ended, before the next step."""
        if not work.ended:
            # Of a closed engine every request is ended.
            with suppress(CancelledError):
                self._post(lambda: self._drop(work))

    def call(self, function: Callable[[], Value]) -> "Future[Value]":
        """Call a function between two steps, after everything that was asked of the engine before.

        Raises:
            CancelledError: The engine has been closed.
        """
        future: Future[Value] = Future()

        def run() -> None:
            # Who waited for it may have gone.
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)

        self._post(run)
        return future

    def jobs(self) -> list[Job]:
        """Return the requests that are being written, and those that wait or are being read; raises as :meth:`call`."""
        return self.call(lambda: [*self._batch.jobs, *self._room.jobs]).result()

    def close(self) -> None:
        """End the thread and every request, and wait for that; no request is taken any more."""
        with self._lock:
            self._closed = True
        self._news.set()
        self._thread.join()

    def _post(self, message: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                raise CancelledError
            self._inbox.append(message)
        self._news.set()

    @torch.no_grad()
    def _run(self) -> None:
        reason: Exception = CancelledError()
        try:
            # Once, for the thread: at every step it would take as long as some of the model's operations.
            with threads_for(self._llm):
                while not self._closed:
                    if not (self._inbox or self._room or self._batch.rows or self._solos):
                        self._news.wait()
                        self._news.clear()
                    self._turn()
                    if self._solos and not self._closed:
                        self._run_solo(self._solos.popleft())
        except Exception as error:
            logger.exception("the engine has failed, and takes no more requests")
            reason = error
        finally:
            # Whatever has happened, nobody waits for a thread that is no more.
            self._end_all(reason)

    def _end_all(self, reason: Exception) -> None:
        with self._lock:
            self._closed = True
        self._end_batch(reason)
        while self._inbox:
            self._inbox.popleft()()
        for work in [*self._room.jobs, *self._solos]:
            work.end(reason)

    def _end_batch(self, reason: Exception) -> None:
        for job in self._batch.jobs:
            job.end(reason)
        self._batch.clear()

    def _turn(self) -> None:
        """Take messages, read a part of what waits, and write a token of every row."""
        try:
            while self._inbox:
                self._inbox.popleft()()
            if self._room:
                self._read()
            if self._batch.rows:
                self._step()
        except Exception as error:
            # Half a step done, or rows half taken out: none of them can go on.
            logger.exception("a step of the running batch failed")
            self._end_batch(error)

    def _read(self) -> None:
        """Read a part of what waits, and let what has been read join the batch."""
        waiting = len(self._room.waiting)
        arrivals = self._room.read(self.max_rows - len(self._batch.rows))
        self._count(len(self._room.waiting) - waiting)
        try:
            self._batch.join(arrivals)
        except Exception as error:
            # For want of memory, above all. The answers that are being written do not pay for it.
            logger.exception("prompts that had been read could not join the running batch")
            for reader, _ in arrivals:
                reader.job.end(error)

    def _step(self) -> None:
        news, ended = self._batch.write()
        for job in ended:
            job.end()
            self._usual_seconds += _LAST * (job.seconds - self._usual_seconds)
        for job in news:
            job.wake()
        now = time.monotonic()
        if now - self._flushed >= _FLUSH_SECONDS:
            jobs = self._batch.jobs
            if now - self._flushed >= min(_FLUSH_SHARE * len(jobs), _FLUSH_LONGEST):
                self._flushed = now
                for job in jobs:
                    job.wake()
        # Readers are told before the next step begins.
        self._batch.read()

    def _take(self, work: Work) -> None:
        if work.cancelled:
            self._count(-1)
        elif isinstance(work, Job):
            self._room.waiting.append(work)
        elif isinstance(work, Solo):
            self._solos.append(work)

    def _drop(self, work: Work) -> None:
        if work.ended:
            return
        work.cancelled = True
        if work is self._running:
            return
        if isinstance(work, Job):
            self._count(-(work in self._room.waiting))
            self._room.drop(work)
        elif isinstance(work, Solo) and work in self._solos:
            self._count(-1)
            self._solos.remove(work)
        # First: if its rows cannot be taken out, the others end too, and nothing else would end this one.
        work.end(CancelledError())
        if isinstance(work, Job):
            self._batch.drop(work)

    def _count(self, change: int) -> None:
        with self._lock:
            self._unread += change

    def _run_solo(self, work: Solo) -> None:
        """Do work that is not of the batch, with turns of the batch between its steps."""
        self._count(-1)
        self._running, work.began = work, time.perf_counter()

        def between_steps() -> None:
            if not self._closed:
                self._turn()
            if work.cancelled or self._closed:
                raise CancelledError

        error: Exception | None = None
        try:
            for piece in work.pieces(between_steps):
                work.answers[0].push(piece)
                work.wake()
        except Exception as raised:  # noqa: BLE001 - it is told to who has asked
            error = raised
        self._running = None
        work.end(error)
