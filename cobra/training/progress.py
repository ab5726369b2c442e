"""Progress of training: a live bar on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from cobra.training.metrics import without_stage
from cobra.util.waiting import tell_waiting

# Steps of a start that have a plain line each, where there is no terminal; then each tenth of the run has one, and each
# minute without any.
_FIRST_STEPS = (1, 2, 5, 10)
_TENTHS = 10
_QUIET_SECONDS = 60.0

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
            done: Steps that an earlier start has done. The time left is told from the steps after the first of this
                start, which also compiles and reads ahead.
        """
        self._total, self._done, self._enabled, self._console = total_steps, done, enabled, Console()
        self._first: float | None = None
        self._waiting = ExitStack()
        self._printed = time.perf_counter()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            # It has the room that the others leave, and is cut where that is narrow.
            TextColumn("{task.fields[numbers]}", table_column=Column(ratio=1, no_wrap=True)),
            expand=True,
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=total_steps, completed=done, left="", numbers="")

    def __enter__(self) -> "StepProgress":
        self._bar.start()
        if self._enabled:
            self._waiting.enter_context(tell_waiting("the first step reads rows ahead and compiles", self.say))
        return self

    def __exit__(self, *error: object) -> None:
        self._waiting.close()
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
        now, after = time.perf_counter(), step - self._done
        left = ""
        if self._first is None:
            self._waiting.close()
            self._first = now
        elif step < self._total:
            left = f"{timedelta(seconds=round((now - self._first) / max(1, after - 1) * (self._total - step)))} left"
        self._bar.update(self._task, completed=step, left=left, numbers=numbers)
        due = after in _FIRST_STEPS or step == self._total or step % max(1, self._total // _TENTHS) == 0
        if (due or now - self._printed >= _QUIET_SECONDS) and not self._console.is_terminal:
            self._printed = now
            print("  ".join(filter(None, (f"step {step}/{self._total}", numbers, left))), flush=True)
