"""Metrics of a run: one line per step, written to every tracker."""

import importlib.util
import json
import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cobra.training.jsonl_log import StepLines
from cobra.util.errors import check_known, missing_extra
from cobra.util.files import write_json

STAGE_PREFIX = {"align": "Align", "finetune": "Finetune", "full-finetune": "Full-Finetune"}

# Steps over which the smoothed loss, the step time and the speeds are averaged.
_WINDOW = 128
_GB = 1e9

_WANDB_ID = "wandb-id.json"


def without_stage(name: str) -> str:
    """Return the name of a metric without the stage in front of it."""
    stage, _, rest = name.partition("/")
    return rest if stage in STAGE_PREFIX.values() else name


class Tracker(NamedTuple):
    """Place that the metrics of every step are written to."""

    write: Callable[[int, dict[str, float]], None]
    """Takes the number of a step and its metrics."""
    finalize: Callable[[], None]
    """Flushes and closes."""
    earlier: Iterable[Mapping[str, Any]] = ()
    """Metrics of the steps before this start, where they can be had; read once."""


class TrackerOptions(NamedTuple):
    """Options that trackers are opened with."""

    run_id: str
    run_dir: Path
    hparams: dict[str, Any]
    stage: str
    resumed_step: int | None
    """The step that the run goes on from; None for a new run."""
    wandb_project: str
    wandb_entity: str | None


def open_json_lines(options: TrackerOptions) -> Tracker:
    """Open Cobra's files: `run-metrics.jsonl` with the hyper-parameters, and `{run_id}.jsonl` with a line per step.

    The lines beyond the step that the run goes on from are taken out. What is not a finite number is null. A full disk
    costs lines, and not the run.
    """
    header = options.run_dir / "run-metrics.jsonl"
    if options.resumed_step is None or not header.exists():
        write_json(header, {"hparams": options.hparams, "run_id": options.run_id}, indent=None)
    step_key = f"{STAGE_PREFIX[options.stage]}/Step"
    lines = StepLines(options.run_dir / f"{options.run_id}.jsonl", step_key, options.resumed_step or 0)
    failed = False

    def write(step: int, values: dict[str, float]) -> None:
        nonlocal failed
        try:
            lines.append([values])
            failed = False
        except OSError as error:
            if not failed:
                print(
                    f"warning: the metrics of step {step} could not be written ({error}); the run goes on, and they "
                    "are written again when they can be",
                    file=sys.stderr,
                    flush=True,
                )
            failed = True

    return Tracker(write, lambda: None, lines.read())


def open_wandb(options: TrackerOptions) -> Tracker:
    """Open Weights & Biases (extra `tracking`).

    A run that goes on is the same one there. Steps that are done again have been logged, with the same numbers, and
    wandb drops them.
    """
    try:
        import wandb
    except ImportError as error:
        raise missing_extra("wandb", "tracking", "The tracker wandb") from error
    file = options.run_dir / _WANDB_ID
    resumed = options.resumed_step is not None and file.exists()
    run = wandb.init(
        name=options.run_id,
        dir=str(options.run_dir),
        config=options.hparams,
        project=options.wandb_project,
        entity=options.wandb_entity,
        group=options.stage,
        id=json.loads(file.read_text(encoding="utf-8")) if resumed else None,
        resume="allow" if resumed else None,
    )
    write_json(file, run.id)
    return Tracker(lambda step, values: run.log(values, step=step), run.finish)


def open_tensorboard(options: TrackerOptions) -> Tracker:
    """Open TensorBoard event files in the run directory (extra `tracking`)."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise missing_extra("tensorboard", "tracking", "The tracker tensorboard") from error
    purge_step = None if options.resumed_step is None else options.resumed_step + 1
    writer = SummaryWriter(str(options.run_dir / "tensorboard"), purge_step=purge_step)

    def write(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Tracker(write, writer.close)


TRACKERS: dict[str, Callable[[TrackerOptions], Tracker]] = {
    "jsonl": open_json_lines,
    "wandb": open_wandb,
    "tensorboard": open_tensorboard,
}


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise a UserError where a tracker is unknown, or its package is not installed."""
    check_known(names, TRACKERS, "the tracker")
    for name in names:
        if name != "jsonl" and name not in sys.modules and importlib.util.find_spec(name) is None:
            raise missing_extra(name, "tracking", f"The tracker {name}")


class _Step(NamedTuple):
    """Time and size of a step, for the speeds."""

    seconds: float
    tokens: int
    rows: int
    flops: float


class Metrics:
    """Collects the numbers of every step on the main process and writes them to the trackers."""

    def __init__(
        self,
        active_trackers: tuple[str, ...],
        run_id: str,
        run_dir: Path,
        hparams: dict[str, Any],
        stage: str,
        wandb_project: str = "cobra",
        wandb_entity: str | None = None,
        resumed_step: int | None = None,
        peak_flops: float | None = None,
    ) -> None:
        """Open the trackers.

        Args:
            active_trackers: Names out of :data:`TRACKERS`.
            run_id: Name of the run.
            run_dir: Its directory, which exists.
            hparams: The configuration.
            stage: Stage of training; it is the prefix of the metrics' names.
            wandb_project: Project on Weights & Biases.
            wandb_entity: User or team on Weights & Biases.
            resumed_step: The step that the run goes on from: what trackers have beyond it is taken out, and new steps
                are appended. None is a new run, and files of an earlier one are replaced.
            peak_flops: Operations a second of all devices together at their best; None where that is not known.

        Raises:
            UserError: A tracker is unknown, or its package is not installed.
        """
        check_trackers(active_trackers)
        self._prefix = STAGE_PREFIX[stage]
        self._peak_flops = peak_flops
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._steps: deque[_Step] = deque(maxlen=_WINDOW)
        options = TrackerOptions(run_id, run_dir, hparams, stage, resumed_step, wandb_project, wandb_entity)
        self._trackers = [TRACKERS[name](options) for name in active_trackers]
        for tracker in self._trackers:
            losses = (values.get(f"{self._prefix}/Loss (Raw)") for values in tracker.earlier)
            self._losses.extend(loss for loss in losses if isinstance(loss, float))
        _peak_memory()
        self._last = time.perf_counter()
        self._stopped: float | None = None

    def commit(
        self,
        step: int,
        loss: float,
        rate: float,
        grad_norm: float,
        tokens: int,
        rows: int,
        extra: Mapping[str, float] | None = None,
        flops: float = 0.0,
    ) -> dict[str, float]:
        """Record a finished step and write it.

        Args:
            step: Steps done, from 1.
            loss: Mean over all labelled tokens; one that is not finite, of a step that changed nothing, stays out of
                the smoothed loss. Like all numbers here it is over all processes.
            rate: Learning rate.
            grad_norm: Global norm before clipping.
            tokens: Labelled tokens.
            rows: Rows.
            extra: Further numbers by their name.
            flops: Operations that the model itself takes.

        Returns:
            What was written: `Loss` is the mean of the last 128 finite ones, and NaN before the first. `Step Time` and
            the speeds, a second, are over as many steps of this start. `Memory (GB)` is the peak since the last line
            on this process's device, or of its main memory since its start where the device is not CUDA's. `MFU` is
            the share of the devices' peak that the model's own operations come to, where both are known.
        """
        now = time.perf_counter()
        seconds = (now if self._stopped is None else self._stopped) - self._last
        self._last, self._stopped = now, None
        self._steps.append(_Step(seconds, tokens, rows, flops))
        if math.isfinite(loss):
            self._losses.append(loss)
        total = sum(step.seconds for step in self._steps)
        values: dict[str, float] = {
            "Step": step,
            "Loss": sum(self._losses) / len(self._losses) if self._losses else math.nan,
            "Loss (Raw)": loss,
            "Learning Rate": rate,
            "Step Time": total / len(self._steps),
            "Gradient Norm": grad_norm,
            "Tokens": tokens,
            "Tokens/s": sum(step.tokens for step in self._steps) / total,
            "Samples/s": sum(step.rows for step in self._steps) / total,
            "Memory (GB)": _peak_memory() / _GB,
        }
        if self._peak_flops is not None:
            values["MFU"] = sum(step.flops for step in self._steps) / (total * self._peak_flops)
        named = {f"{self._prefix}/{name}": value for name, value in (values | dict(extra or {})).items()}
        for tracker in self._trackers:
            tracker.write(step, named)
        return named

    def stop_clock(self) -> None:
        """End the time of the step that is committed next: what follows is not training."""
        self._stopped = time.perf_counter()

    def finalize(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.finalize()


def _peak_memory() -> int:
    """Return the most bytes that were allocated on the device since this was last asked, or resident in main memory."""
    if torch.cuda.is_initialized():
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In bytes on macOS, in kibibytes elsewhere.
    return resident if sys.platform == "darwin" else 1024 * resident
