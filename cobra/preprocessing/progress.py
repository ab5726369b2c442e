"""Progress bars for work that is measured in bytes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

# Seconds between two lines of one bar where the error stream is no terminal.
_LINE_SECONDS = 60.0


class ByteBars:
    """Bars with rate and time left on the error stream, while the context is entered.

    Where the error stream is no terminal, a line says as much when a bar's work ends, and now and then before. Any
    thread may move a bar.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)

    def __enter__(self) -> "ByteBars":
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars; taken literally, no markup."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, description: str, total: int | None, done: int = 0, stays: bool = True) -> Iterator["Bar"]:
        """Show a bar.

        Args:
            description: What is being done; taken literally, no markup.
            total: Bytes in all; None where that is not known.
            done: Bytes that were there before.
            stays: Whether the bar is left on the terminal when its work has ended.
        """
        bar = Bar(self, description, total, done)
        try:
            yield bar
        finally:
            bar._end(stays)


class Bar:
    """One bar of :class:`ByteBars`."""

    def __init__(self, bars: ByteBars, description: str, total: int | None, done: int) -> None:
        self._bars = bars
        self._description = description
        self._task = bars.progress.add_task(description, total=total, completed=done)
        self._said = time.monotonic()

    def advance(self, count: int) -> None:
        """Count bytes that have come; a negative number takes some back."""
        self._bars.progress.advance(self._task, count)
        if not self._bars.console.is_terminal and time.monotonic() - self._said > _LINE_SECONDS:
            self._say()

    def expect(self, total: int | None) -> None:
        """Set the bytes in all."""
        self._bars.progress.update(self._task, total=total)

    def _end(self, stays: bool) -> None:
        if not self._bars.console.is_terminal:
            self._say()
        if not stays:
            self._bars.progress.remove_task(self._task)

    def _say(self) -> None:
        self._said = time.monotonic()
        task = next(task for task in self._bars.progress.tasks if task.id == self._task)
        text = f"{self._description}: {decimal(int(task.completed))}"
        if task.total:
            text += f" of {decimal(int(task.total))}"
        if task.speed and not task.finished:
            text += f", {decimal(int(task.speed))}/s"
            if task.time_remaining:
                text += f", {task.time_remaining / 60:.0f} min left"
        self._bars.say(text)


@contextmanager
def byte_progress(description: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show one bar, as :meth:`ByteBars.bar` does, and yield the function that advances it."""
    with ByteBars() as bars, bars.bar(description, total, done) as bar:
        yield bar.advance
