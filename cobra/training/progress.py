"""One line that shows how training goes: a live bar on a terminal, a plain line now and then elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Plain lines of a whole run, where there is no terminal.
_LINES = 20


class StepProgress:
    """Context manager around a training loop."""

    def __init__(self, total_steps: int, enabled: bool) -> None:
        """Prepare to show `total_steps` steps; nothing is shown unless `enabled`."""
        self._total = total_steps
        self._enabled = enabled
        self._console = Console()
        self._start = time.perf_counter()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=total_steps, numbers="")

    def __enter__(self) -> "StepProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def advance(self, step: int, loss: float, rate: float, grad_norm: float) -> None:
        """Show the numbers of a finished step, counted from 1."""
        numbers = f"loss {loss:.4f}  lr {rate:.2e}  norm {grad_norm:.2f}"
        self._bar.update(self._task, completed=step, numbers=numbers)
        due = step == 1 or step == self._total or step % max(1, self._total // _LINES) == 0
        if self._enabled and not self._console.is_terminal and due:
            elapsed = time.perf_counter() - self._start
            remaining = elapsed / step * (self._total - step)
            print(
                f"step {step}/{self._total}  {numbers}  {elapsed:.0f} s done, about {remaining:.0f} s left", flush=True
            )
