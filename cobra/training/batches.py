"""Batches on their way from the rows to the model."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cobra.util.data_utils import IGNORE_INDEX, SKIPPED_ROWS
from cobra.util.errors import UserError

Batch = dict[str, Any]


def count_targets(labels: Tensor, multimodal_indices: Tensor) -> Tensor:
    """Return how many labels enter the loss, a scalar int64.

    Each token is predicted from the position before it. The first token of a text row has none; that of a row with an
    image is predicted from the last patch.

    Args:
        labels: (batch, text) int64, -100 where no loss is wanted.
        multimodal_indices: Rows that have an image (n,) int64.
    """
    labelled = labels != IGNORE_INDEX
    return labelled[:, 1:].sum() + labelled[multimodal_indices, 0].sum()


def grouped(loader: DataLoader, size: int) -> Iterator[list[Batch] | UserError]:
    """Yield lists of `size` successive batches; the sampler pads every global batch, so none is left over.

    The error of a bad row comes in place of the list that it would be in, and is the last: what to do is for all
    processes to agree on.
    """
    group: list[Batch] = []
    for batch in loader:
        if isinstance(batch, UserError):
            yield batch
            return
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def mark_skipped(batches: list[Batch], skipped: Tensor) -> None:
    """Set `skipped` (rows,) to 1 at the rows of the batches that are skipped, and take their numbers out of these."""
    for batch in batches:
        rows = batch.pop(SKIPPED_ROWS, None)
        if rows is not None:
            skipped[rows] = 1


class ErrorsAsValues(Dataset[Any]):
    """Rows, with a UserError in place of a bad one: raised in a worker it would come out as a traceback in a string."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except UserError as error:
            return error

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


class CollateOrPass:
    """A collator that passes on the first UserError among its rows."""

    def __init__(self, collator: Callable[[Any], Batch]) -> None:
        self.collator = collator

    def __call__(self, rows: list[Any]) -> Batch | UserError:
        """Return the batch, or the error."""
        return next((row for row in rows if isinstance(row, UserError)), None) or self.collator(rows)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors, those by tower too, on a device."""

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: move(item) for name, item in value.items()}
        return value.to(device, non_blocking=True)

    return move(batch)
