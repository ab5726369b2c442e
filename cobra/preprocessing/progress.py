"""Progress bars for bytes and for items."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich import progress as rich_progress
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.text import Text

from cobra.util.waiting import FIRST_SECONDS

Item = TypeVar("Item")

# Seconds between two lines of one bar where the error stream is no terminal.
_LINE_SECONDS = 60.0


class _Bytes(rich_progress.DownloadColumn):
    def render(self, task: rich_progress.Task) -> Text:
        if task.total is not None:
            return super().render(task)
        return Text(decimal(int(task.completed)) if task.completed else "no answer yet")


class _Rate(rich_progress.TransferSpeedColumn):
    def render(self, task: rich_progress.Task) -> Text:
        return super().render(task) if task.finished_speed or task.speed else Text("")


class ByteBars(rich_progress.Progress):
    """Bars with rate and time left on the error stream, while the context is entered.

    A bar whose work ends becomes a line of text. Where the error stream is no terminal there are only such lines, and
    one a minute while work goes on. Any thread may move a bar.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        name = rich_progress.TextColumn("{task.description}", markup=False)
        columns = (name, rich_progress.BarColumn(), _Bytes(), _Rate(), rich_progress.TimeRemainingColumn())
        super().__init__(*columns, console=console, disable=not console.is_terminal)

    def print_line(self, text: str) -> None:
        """Print a line above the bars; taken literally, no markup."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, description: str, total: int | None, done: int = 0, least: float = 0.0) -> Iterator["Bar"]:
        """Show a bar of bytes, of which `done` were there before.

        The description is taken literally, no markup. The total is None where it is not known. Work of less than
        `least` seconds leaves no line.
        """
        bar = Bar(self, description, total, done)
        try:
            yield bar
        finally:
            task = bar.task
            self.remove_task(task.id)
            # Where a server does not answer there is nothing to sum up.
            if (task.completed or task.total is not None) and (task.elapsed or 0) >= least:
                self.print_line(f"{_amount(task)} in {task.elapsed or 0:.0f} s")


class Bar:
    """One bar of :class:`ByteBars`."""

    def __init__(self, bars: ByteBars, description: str, total: int | None, done: int) -> None:
        self._bars = bars
        self._id = bars.add_task(description, total=total, completed=done)
        self._printed_at = time.monotonic()

    def advance(self, count: int) -> None:
        """Count bytes that have come; a negative number takes some back."""
        self._bars.advance(self._id, count)
        if not self._bars.console.is_terminal and time.monotonic() - self._printed_at > _LINE_SECONDS:
            self._printed_at = time.monotonic()
            task = self.task
            rate = f", {decimal(int(task.speed))}/s" if task.speed else ""
            left = f", {task.time_remaining / 60:.0f} min left" if task.time_remaining else ""
            self._bars.print_line(_amount(task) + rate + left)

    def expect(self, total: int | None) -> None:
        """Set the bytes in all."""
        self._bars.update(self._id, total=total)

    @property
    def task(self) -> rich_progress.Task:
        """The bar's present state."""
        return next(task for task in self._bars.tasks if task.id == self._id)


def _amount(task: rich_progress.Task) -> str:
    total = f" of {decimal(int(task.total))}" if task.total else ""
    return f"{task.description}: {decimal(int(task.completed))}{total}"


@contextmanager
def byte_progress(description: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show one bar of work on files that are here, and yield the function that advances it; see :meth:`ByteBars.bar`.

    What a few seconds are enough for leaves no line.
    """
    with ByteBars() as bars, bars.bar(description, total, done, FIRST_SECONDS) as bar:
        yield bar.advance


def track_items(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Return the items, with a bar on the error stream as they are gone through, where that is a terminal.

    The description is taken literally, no markup. Without a total the items' length counts, where they have one.
    """
    console = Console(stderr=True)
    return rich_progress.track(
        items, escape(description), total, console=console, transient=True, disable=not console.is_terminal
    )
