"""Progress of training: a live bar on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from cobra.training.metrics import without_stage

# Plain lines of a whole run, where there is no terminal.
_LINES = 20

# Metric -> how the line shows it, in this order.
_SHOWN = {
    "Loss (Raw)": "loss {:.4f}",
    "Learning Rate": "lr {:.2e}",
    "Gradient Norm": "norm {:.2f}",
    "Tokens/s": "{:,.0f} tokens/s",
    "Samples/s": "{:,.1f} samples/s",
    "Memory (GB)": "{:.1f} GB",
    "MFU": "{:.0%} MFU",
}


class StepProgress:
    """Context manager around a training loop."""

    def __init__(self, total_steps: int, enabled: bool, done: int = 0) -> None:
        """Prepare to show steps; nothing is shown unless `enabled`.

        Args:
            total_steps: Steps of the whole run.
            enabled: True on the process that shows them.
            done: Steps that an earlier start has done; the time left is told from those after them.
        """
        self._total, self._done, self._enabled, self._console = total_steps, done, enabled, Console()
        self._start = time.perf_counter()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]} left"),
            # It has the room that the others leave, and is cut where that is narrow.
            TextColumn("{task.fields[numbers]}", table_column=Column(ratio=1, no_wrap=True)),
            expand=True,
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=total_steps, completed=done, left="-:--:--", numbers="")

    def __enter__(self) -> "StepProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def advance(self, step: int, values: Mapping[str, float]) -> None:
        """Show the numbers of a finished step that the line has a place for.

        Args:
            step: Its number in the whole run, from 1.
            values: Numbers as :meth:`Metrics.commit` returns them, with or without the stage in front of their names.
        """
        if not self._enabled:
            return
        short = {without_stage(name): value for name, value in values.items()}
        numbers = "  ".join(form.format(short[name]) for name, form in _SHOWN.items() if name in short)
        elapsed = time.perf_counter() - self._start
        left = timedelta(seconds=round(elapsed / max(1, step - self._done) * (self._total - step)))
        self._bar.update(self._task, completed=step, left=left, numbers=numbers)
        due = step in (self._done + 1, self._total) or step % max(1, self._total // _LINES) == 0
        if due and not self._console.is_terminal:
            print(f"step {step}/{self._total}  {numbers}  {left} left", flush=True)
