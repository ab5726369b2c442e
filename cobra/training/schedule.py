"""Arithmetic of a run: batches, steps and the learning rate of every step, checked before anything starts."""

import math
from dataclasses import dataclass

from cobra.training.config import Hyperparameters
from cobra.util.errors import UserError, check_known
from cobra.util.numbers import counted

# Checkpoints of epochs' ends that a run writes at most. An epoch of few rows may be a single step.
MOST_MILESTONES = 10

SCHEDULES = ("linear-warmup+cosine-decay",)


@dataclass(frozen=True)
class StepPlan:
    """Numbers of rows and steps of a run.

    Attributes:
        global_batch_size: Rows of one optimiser step.
        per_device_batch_size: Rows of one forward pass on one process.
        world_size: Processes.
        batches_per_epoch: Global batches of one pass over the data, as the sampler yields them.
        total_steps: Optimiser steps of the whole run.
    """

    global_batch_size: int
    per_device_batch_size: int
    world_size: int
    batches_per_epoch: int
    total_steps: int

    @property
    def accumulation_steps(self) -> int:
        """Forward passes of one process in one optimiser step."""
        return self.global_batch_size // (self.per_device_batch_size * self.world_size)

    @property
    def epochs(self) -> int:
        """Passes over the data, the last one perhaps cut short."""
        return math.ceil(self.total_steps / self.batches_per_epoch)

    @property
    def milestones(self) -> int:
        """Number of the steps after which :meth:`is_milestone` holds."""
        return math.ceil(self.epochs / self._milestone_epochs)

    @property
    def _milestone_epochs(self) -> int:
        return math.ceil(self.epochs / MOST_MILESTONES)

    def is_milestone(self, step: int) -> bool:
        """Return True if a step ends the run, or an epoch whose end has a checkpoint: all, where epochs are few."""
        return step == self.total_steps or step % (self.batches_per_epoch * self._milestone_epochs) == 0


def check_batches(global_batch_size: int, per_device_batch_size: int, world_size: int, prefix: str) -> None:
    """Check that a global batch (:class:`StepPlan`) divides into equal forward passes on all processes.

    The flags in the error begin with `prefix`, `align` or `finetune`.

    Raises:
        UserError: They do not divide; sizes that would work are named.
    """
    if global_batch_size < 1 or per_device_batch_size < 1:
        raise UserError(
            f"batch sizes must be positive, found --model.{prefix}_global_batch_size {global_batch_size} and "
            f"--model.{prefix}_per_device_batch_size {per_device_batch_size}"
        )
    rows = per_device_batch_size * world_size
    if global_batch_size % rows == 0:
        return
    near = {max(rows, global_batch_size // rows * rows), -(-global_batch_size // rows) * rows}
    remedies = [f"--model.{prefix}_global_batch_size {' or '.join(map(str, sorted(near)))}"]
    if global_batch_size % world_size == 0:
        share = global_batch_size // world_size
        fitting = max(size for size in range(1, min(share, per_device_batch_size) + 1) if share % size == 0)
        remedies.append(f"--model.{prefix}_per_device_batch_size {fitting}")
    raise UserError(
        f"a global batch of {global_batch_size} rows does not divide into forward passes of {per_device_batch_size} "
        f"rows on {world_size} processes ({rows} rows at a time): use {', or '.join(remedies)}"
    )


def plan_steps(values: Hyperparameters, world_size: int, batches_per_epoch: int) -> StepPlan:
    """Plan a run from the sampler's real number of batches; `max_steps`, where given, takes the place of epochs.

    Raises:
        UserError: There would be no step.
    """
    total = values.epochs * batches_per_epoch if values.max_steps is None else values.max_steps
    if total < 1:
        epochs = f"{counted(values.epochs, 'epoch')} of {counted(batches_per_epoch, 'batch')}"
        raise UserError(f"the run would take {counted(total, 'step')} ({epochs})")
    return StepPlan(values.global_batch_size, values.per_device_batch_size, world_size, batches_per_epoch, total)


def learning_rate(step: int, total_steps: int, peak: float, warmup_ratio: float) -> float:
    """Return the learning rate of a step, from 0: linear from 0 over the warm-up, then a cosine to 0.

    The warm-up is `warmup_ratio` of the steps, rounded down; without any the first step has the peak. A pure function
    of the step, so that an interrupted run goes on with the very same rates.
    """
    warmup = int(total_steps * warmup_ratio)
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(total_steps - warmup, 1)
    return peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def check_schedule(name: str) -> None:
    """Raise a UserError where the type of schedule is unknown."""
    check_known(name, SCHEDULES, "the learning rate schedule")
