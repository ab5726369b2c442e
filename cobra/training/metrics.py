"""Metrics of a run: a line per step to every tracker that was asked for."""

import importlib.util
import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Protocol

from cobra.util.errors import UserError, missing_extra

_STAGE_PREFIX = {"align": "Align", "finetune": "Finetune", "full-finetune": "Full-Finetune"}

# Steps over which the smoothed loss and step time are averaged.
_WINDOW = 128


class Tracker(Protocol):
    """A place where metrics go."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Take the metrics of one step."""

    def finalize(self) -> None:
        """Flush and close."""


class JSONLinesTracker:
    """Cobra's files: `run-metrics.jsonl` with the hyper-parameters, and `{run_id}.jsonl` with a line per step."""

    def __init__(self, run_id: str, run_dir: Path, hparams: dict[str, Any], **_: Any) -> None:
        header = json.dumps({"hparams": hparams, "run_id": run_id})
        (run_dir / "run-metrics.jsonl").write_text(header + "\n", encoding="utf-8")
        self._file = (run_dir / f"{run_id}.jsonl").open("w", encoding="utf-8")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append a line and hand it to the system, so that a killed run keeps what it has done."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def finalize(self) -> None:
        """Close the file."""
        self._file.close()


class WandbTracker:
    """Weights & Biases (extra `tracking`)."""

    def __init__(
        self, run_id: str, run_dir: Path, hparams: dict[str, Any], project: str, entity: str | None, stage: str
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise missing_extra("wandb", "tracking", "The tracker wandb") from error
        self._run = wandb.init(
            name=run_id, dir=str(run_dir), config=hparams, project=project, entity=entity, group=stage
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the metrics of a step."""
        self._run.log(values, step=step)

    def finalize(self) -> None:
        """Finish the run."""
        self._run.finish()


class TensorboardTracker:
    """TensorBoard event files in the run directory (extra `tracking`)."""

    def __init__(self, run_id: str, run_dir: Path, hparams: dict[str, Any], **_: Any) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_extra("tensorboard", "tracking", "The tracker tensorboard") from error
        self._writer = SummaryWriter(str(run_dir / "tensorboard"))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the metrics of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finalize(self) -> None:
        """Close the writer."""
        self._writer.close()


TRACKERS: dict[str, Any] = {"jsonl": JSONLinesTracker, "wandb": WandbTracker, "tensorboard": TensorboardTracker}


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise a UserError where a tracker is unknown, or its package is not installed."""
    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        raise UserError(f"the tracker {', '.join(unknown)} is unknown; the known ones are: {', '.join(TRACKERS)}")
    for name in names:
        if name != "jsonl" and name not in sys.modules and importlib.util.find_spec(name) is None:
            raise missing_extra(name, "tracking", f"The tracker {name}")


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
    ) -> None:
        """Open the trackers.

        Args:
            active_trackers: Names out of :data:`TRACKERS`.
            run_id: Name of the run.
            run_dir: Its directory, which exists.
            hparams: The configuration.
            stage: Stage of training; it is the prefix of the metrics' names.
            wandb_project: For wandb.
            wandb_entity: For wandb.

        Raises:
            UserError: A tracker is unknown, or its package is not installed.
        """
        check_trackers(active_trackers)
        self._prefix = _STAGE_PREFIX[stage]
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._times: deque[float] = deque(maxlen=_WINDOW)
        self._last = time.perf_counter()
        self._stopped: float | None = None
        self._trackers: list[Tracker] = [
            TRACKERS[name](
                run_id=run_id,
                run_dir=run_dir,
                hparams=hparams,
                **({"project": wandb_project, "entity": wandb_entity, "stage": stage} if name == "wandb" else {}),
            )
            for name in active_trackers
        ]

    def commit(
        self, step: int, loss: float, rate: float, grad_norm: float, tokens: int, validation_loss: float | None = None
    ) -> dict[str, float]:
        """Record a finished step and write it.

        Args:
            step: Steps done, from 1.
            loss: Mean over all labelled tokens of the step, over all processes.
            rate: Learning rate of the step.
            grad_norm: Global norm before clipping.
            tokens: Labelled tokens of the step, over all processes.
            validation_loss: Mean over all labelled tokens of the held-out rows, where it has been taken.

        Returns:
            What was written.
        """
        now = time.perf_counter()
        self._times.append((now if self._stopped is None else self._stopped) - self._last)
        self._last, self._stopped = now, None
        self._losses.append(loss)
        seconds = sum(self._times) / len(self._times)
        values = {
            "Step": step,
            "Loss": sum(self._losses) / len(self._losses),
            "Loss (Raw)": loss,
            "Learning Rate": rate,
            "Step Time": seconds,
            "Gradient Norm": grad_norm,
            "Tokens": tokens,
        }
        if validation_loss is not None:
            values["Validation Loss"] = validation_loss
        named = {f"{self._prefix}/{name}": value for name, value in values.items()}
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
