"""Batches of rows, from the data workers to the model's device, and the number of these workers."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from cobra.training.preemption import held_back, shield
from cobra.util.data_utils import IGNORE_INDEX, SKIPPED_ROWS
from cobra.util.distributed import World
from cobra.util.errors import UserError

Batch = dict[str, Any]
SHARED_MEMORY = Path("/dev/shm")
_MORE_SHARED_MEMORY = "(docker run --shm-size 8g, or --ipc host), or read rows without workers (--num_workers 0)"
# Batches of a worker that wait to be taken (torch's prefetch_factor), and the one that is being trained on.
_BATCHES_OF_A_WORKER = 3
_MOST_BY_DEFAULT = 4


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

    Without workers (0) this process reads the rows; pinned memory is what batches go to a GPU from meanwhile.
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

    The error of a bad row comes in place of its list, and is the last: what to do is for all processes to agree on.
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
    """Yield the batches of a loader; where a worker was killed, an error is the last."""
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
                tree_map(Tensor.share_memory_, batch)
            except (RuntimeError, OSError) as problem:
                return UserError(
                    f"a data worker cannot hand over its batch through shared memory ({problem}): give more of it "
                    f"{_MORE_SHARED_MEMORY}"
                )
        return batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors, those by tower too, on a device."""
    return tree_map(lambda value: value.to(device, non_blocking=True), batch)


def count_workers(
    asked: int | None,
    dataset: Dataset,
    collator: Callable[[Any], Batch],
    modality_lengths: Sequence[tuple[bool, int]],
    batch_size: int,
    world: World,
    say: Callable[[str], None],
) -> int:
    """Return how many worker processes read rows for this training process: as many as asked, or by default up to 4.

    By default there are some only on CUDA where cores are to spare, and where shared memory holds their batches. The
    longest row with an image is read to learn its size.

    Raises:
        UserError: There is too little shared memory for the workers that were asked for.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # A worker for every core that the training processes leave free.
    spare = (os.cpu_count() or 1) // processes - 1 if world.device.type == "cuda" else 0
    workers = max(0, min(_MOST_BY_DEFAULT, spare)) if asked is None else asked
    if workers == 0 or not SHARED_MEMORY.is_dir():
        return workers
    row = max(range(len(modality_lengths)), key=modality_lengths.__getitem__)
    try:
        batch = collator([dataset[row]] * batch_size)
        needed = processes * workers * _BATCHES_OF_A_WORKER * sum(value.nbytes for value in tree_leaves(batch))
    except UserError:
        # The row cannot be read, which the training tells of when it comes.
        return workers
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed <= free:
        return workers
    short = (
        f"{SHARED_MEMORY} has {free / 2**20:,.0f} MiB free, and {workers} data workers of {processes} processes need "
        f"{needed / 2**20:,.0f} MiB for their batches"
    )
    if asked is not None:
        raise UserError(f"{short}: give more shared memory {_MORE_SHARED_MEMORY}")
    say(f"{short}; rows are read without workers. More shared memory (docker run --shm-size 8g) makes training faster")
    return 0
