"""Steps that change nothing because their loss or gradient is not finite: their rows, and the limit."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset

from cobra.training.batches import Batch, to_device
from cobra.training.strategy import TrainStrategy
from cobra.util.batching_utils import SplitModalitySampler
from cobra.util.errors import SharedError

_NAMED_ROWS = 20


def fail_if_mostly_skipped(strategy: TrainStrategy, total_steps: int) -> None:
    """Raise a SharedError after the last step where more than half of all changed nothing: such a run is no success."""
    skipped = strategy.skipped_steps
    if strategy.global_step == total_steps and 2 * skipped > total_steps:
        raise SharedError(
            f"{skipped:,} of {total_steps:,} steps had a loss or gradient that is not a finite number, and changed "
            "nothing: the run has failed, and no checkpoint of its last step is written. Begin anew under another "
            "--run_id, with a lower learning rate or without the rows that the warnings name"
        )


@torch.no_grad()
def broken_rows(
    strategy: TrainStrategy,
    sampler: SplitModalitySampler,
    dataset: Dataset,
    collator: Callable[[Any], Batch],
    epoch: int,
) -> str:
    """Name the rows of the last step whose loss alone is not finite; every process looks at its own.

    Args:
        strategy: Has done the step.
        sampler: Order of the rows.
        dataset: Rows.
        collator: From rows to a batch.
        epoch: Number of the epoch of the step, from 0.

    Returns:
        A sentence without its full stop, the same on every process.
    """
    world = strategy.world
    batches = sampler.global_batches(epoch)
    batch = batches[strategy.global_step - 1 - epoch * len(batches)]
    share = len(batch) // world.size
    names = []
    for row in batch[world.rank * share : (world.rank + 1) * share]:
        collated = to_device(collator([dataset[row]]), world.device)
        loss = strategy.objective.loss(strategy.vlm, strategy.objective.prepare(strategy.vlm, collated))
        if not bool(torch.isfinite(loss)):
            names.append(_name(dataset, row))
    broken = [name for names_of_one in world.gather(names) for name in names_of_one]
    everyone = broken or [_name(dataset, row) for row in batch]
    what = "Rows whose loss is not finite" if broken else "Each row's loss is finite by itself; the rows were"
    more = f" and {len(everyone) - _NAMED_ROWS} more" if len(everyone) > _NAMED_ROWS else ""
    return f"{what}: {', '.join(everyone[:_NAMED_ROWS])}{more}"


def _name(dataset: Dataset, row: int) -> str:
    examples = getattr(dataset, "examples", None)
    return f"row {row}" if examples is None else f"row {row} (id {examples[row].get('id')!r})"
