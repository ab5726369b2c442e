"""Number of data workers for a training process, within the machine's cores and shared memory."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from cobra.training.batches import Batch, batch_bytes
from cobra.util.distributed import World
from cobra.util.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
# Batches of a worker that wait to be taken (torch's prefetch_factor), and the one that is being trained on.
_BATCHES_OF_A_WORKER = 3
_MOST_BY_DEFAULT = 4


def count_workers(
    asked: int | None,
    dataset: Dataset,
    collator: Callable[[Any], Batch],
    modality_lengths: Sequence[tuple[bool, int]],
    batch_size: int,
    world: World,
    say: Callable[[str], None],
) -> int:
    """Return how many worker processes read rows for this training process.

    Args:
        asked: Value of `--num_workers`; None takes up to 4 where there are cores to spare, on CUDA.
        dataset: Rows; the longest one with an image is read to learn its size.
        collator: From rows to a batch.
        modality_lengths: (has an image, length) of every row.
        batch_size: Rows of a forward pass.
        world: The processes.
        say: Prints a line.

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
        needed = processes * workers * _BATCHES_OF_A_WORKER * batch_bytes(collator([dataset[row]] * batch_size))
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
        raise UserError(
            f"{short}: give more shared memory (docker run --shm-size 8g, or --ipc host), or read rows without workers "
            "(--num_workers 0)"
        )
    say(f"{short}; rows are read without workers. More shared memory (docker run --shm-size 8g) makes training faster")
    return 0
