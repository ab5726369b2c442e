"""Loss on held-out rows: the same number on any number of processes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Dataset

from cobra.models.vlms import CobraVLM
from cobra.training.batches import Batch, to_device
from cobra.training.objective import NextToken, Objective
from cobra.util.data_utils import IGNORE_INDEX, SKIPPED_ROWS
from cobra.util.distributed import World
from cobra.util.torch_utils import bf16_autocast


@contextmanager
def evaluation_mode(vlm: CobraVLM) -> Iterator[None]:
    """Put a model into evaluation mode for a while; afterwards every module is as it was, and sharded again."""
    modes = [(module, module.training) for module in vlm.modules()]
    vlm.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
            # A forward pass without a backward one leaves the units of shard-grad-op whole.
            if isinstance(module, FSDPModule):
                module.reshard()


class Validation:
    """Rows that are never trained on, and how to take the loss on them."""

    def __init__(
        self,
        dataset: Dataset[dict[str, Any]],
        collator: Callable[[Any], Batch],
        modality_lengths: Sequence[tuple[bool, int]],
        per_device_batch_size: int,
        objective: Objective | None = None,
    ) -> None:
        """Plan the passes; rows of like length share one, those with an image and those of text only do not.

        Args:
            dataset: The held-out rows.
            collator: From rows to a batch.
            modality_lengths: (has an image, length) of every row.
            per_device_batch_size: Rows of one forward pass on one process.
            objective: Weight and loss of a batch; None is next-token cross-entropy.
        """
        self._objective = objective or NextToken()
        self._dataset, self._collator, self._size = dataset, collator, per_device_batch_size
        # Longest first: memory runs out at once or not at all.
        order = sorted(range(len(modality_lengths)), key=lambda row: -modality_lengths[row][1])
        self._orders = [[row for row in order if modality_lengths[row][0] == wanted] for wanted in (True, False)]

    @torch.no_grad()
    def loss(
        self, vlm: CobraVLM, world: World, mixed_precision: bool, between: Callable[[], None] = lambda: None
    ) -> float:
        """Return the mean loss of the rows, by the weights of the objective; every process has to call it.

        Args:
            vlm: The model, sharded or not, inside :func:`evaluation_mode`.
            world: The processes.
            mixed_precision: Compute in bf16.
            between: Called before each pass, as often on every process; may raise.

        Raises:
            UserError: A row cannot be read.
        """
        sums = torch.zeros(2, dtype=torch.float64, device=world.device)
        for rows in self._passes(world):
            between()
            with bf16_autocast(world.device, mixed_precision):
                batch = self._objective.prepare(vlm, to_device(self._batch(rows), world.device))
                loss, weight = self._objective.loss(vlm, batch), self._objective.weigh(batch)
            sums += torch.stack([loss.double(), weight.double()])
        total, weight = world.sum(sums).tolist()
        return total / (weight if weight > 0 else 1.0)

    def _passes(self, world: World) -> list[tuple[list[int], bool]]:
        """Return (rows, True if they count) of every pass of this process; all processes have as many passes.

        Sharded models need every process in every pass, so one that has no row left repeats another's, without labels.
        """
        passes = []
        for order in self._orders:
            for begin in range(0, len(order), self._size * world.size):
                together = order[begin : begin + self._size * world.size]
                mine = together[world.rank :: world.size]
                passes.append((mine or together[:1], bool(mine)))
        return passes

    def _batch(self, item: tuple[list[int], bool]) -> Batch:
        rows, counts = item
        batch = self._collator([self._dataset[row] for row in rows])
        batch.pop(SKIPPED_ROWS, None)
        if not counts:
            batch["labels"] = torch.full_like(batch["labels"], IGNORE_INDEX)
        return batch
