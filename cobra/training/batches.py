"""Batches of rows, from the data workers to the model's device."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from cobra.training.preemption import held_back, shield
from cobra.util.data_utils import IGNORE_INDEX, SKIPPED_ROWS
from cobra.util.errors import UserError

Batch = dict[str, Any]


def count_targets(labels: Tensor, multimodal_indices: Tensor) -> Tensor:
    """Return how many labels enter the loss, a scalar int64.

    Each token is predicted from the position before it. The first token of a text row has none; that of a row with an
    image is predicted from the last patch (:mod:`cobra.models.vlms.cobra`).

    Args:
        labels: (batch, text) int64, -100 where no loss is wanted.
        multimodal_indices: Rows that have an image (n,) int64.
    """
    labelled = labels != IGNORE_INDEX
    return labelled[:, 1:].sum() + labelled[multimodal_indices, 0].sum()


def open_loader(
    dataset: Dataset,
    collator: Callable[[Any], Batch],
    sampler: Sampler[int],
    batch_size: int,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader:
    """Return a loader whose workers outlive a request to stop, end with this process, and fail in words.

    Args:
        dataset: Rows.
        collator: From rows to a batch.
        sampler: Order of the rows.
        batch_size: Rows of a forward pass.
        num_workers: Processes that read rows; 0 reads them in this one.
        pin_memory: Copy batches to memory from which they go to a GPU meanwhile.
    """
    return DataLoader(
        ErrorsAsValues(dataset),
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=CollateOrPass(collator),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=partial(_begin_worker, os.getpid()),
    )


def _begin_worker(parent: int, number: int) -> None:
    shield(parent)


def grouped(loader: DataLoader, size: int) -> Iterator[list[Batch] | UserError]:
    """Yield lists of `size` successive batches; the sampler pads every global batch, so none is left over.

    The error of a bad row comes in place of the list that it would be in, and is the last: what to do is for all
    processes to agree on.
    """
    group: list[Batch] = []
    for batch in _read(loader):
        if isinstance(batch, UserError):
            yield batch
            return
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def _read(loader: DataLoader) -> Iterator[Batch | UserError]:
    """Yield the batches of a loader; where a worker was killed, an error in the place of one, as the last."""
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        # Workers of the epoch before are asked here whether they are there.
        with held_back():
            batches = iter(loader)
        if loader.num_workers:
            # torch's raises an error wherever this process is when a worker ends, in a collective say.
            signal.signal(signal.SIGCHLD, handler)
        yield from batches
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        yield UserError(
            f"a data worker was killed, for want of memory perhaps ({error}): read rows with fewer of them "
            "(--num_workers) if it comes again"
        )


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
    """A collator that passes on the first UserError among its rows.

    In a worker process it puts the batch into shared memory itself. The thread that sends it would do so later, and
    where there is no room its error would reach nobody: the training process would wait for ever.
    """

    def __init__(self, collator: Callable[[Any], Batch]) -> None:
        self.collator = collator

    def __call__(self, rows: list[Any]) -> Batch | UserError:
        """Return the batch, or the error."""
        error = next((row for row in rows if isinstance(row, UserError)), None)
        if error is not None:
            return error
        batch = self.collator(rows)
        if get_worker_info() is not None:
            try:
                _on_tensors(batch, Tensor.share_memory_)
            except (RuntimeError, OSError) as problem:
                return UserError(
                    f"a data worker cannot hand over its batch through shared memory ({problem}): give more of it "
                    "(docker run --shm-size 8g, or --ipc host), or read rows without workers (--num_workers 0)"
                )
        return batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors, those by tower too, on a device."""
    return _on_tensors(batch, lambda value: value.to(device, non_blocking=True))


def _on_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch with each of its tensors, those by tower too, replaced by the function's."""
    if isinstance(value, dict):
        return {name: _on_tensors(item, function) for name, item in value.items()}
    return function(value)


def batch_bytes(batch: Batch) -> int:
    """Return the bytes of a batch's tensors."""
    return sum(batch_bytes(value) if isinstance(value, dict) else value.nbytes for value in batch.values())
