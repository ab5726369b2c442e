"""Order of rows: global batches of one modality, balanced in length over the processes."""

import heapq
import math
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import torch
import torch.distributed as dist
from torch.utils.data import Dataset, Sampler

from cobra.util.errors import UserError

# Patches that a row with an image is counted for when the longest batch is looked for.
_COUNTED_PATCHES = 576


class SplitModalitySampler(Sampler[int]):
    """Yields this process's rows of global batches that hold either rows with an image or rows of text only.

    The order depends on seed and epoch alone; processes share every global batch. The last short batch of a modality
    is filled with rows that the epoch has had already, unless `drop_last`. The batch with the longest row comes first,
    so that memory runs out at the start or not at all.
    """

    def __init__(
        self,
        dataset: Dataset,
        modality_lengths: Sequence[tuple[bool, int]],
        global_batch_size: int,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        """Check the sizes.

        `dataset` is there for compatibility alone; `modality_lengths` is (has an image, length) of every row, and
        `global_batch_size` counts rows of all processes. None for `num_replicas` and `rank` asks torch.distributed.

        Raises:
            UserError: There are no rows, or the global batch does not divide among the processes.
        """
        joined = dist.is_available() and dist.is_initialized()
        self.num_replicas = num_replicas if num_replicas is not None else dist.get_world_size() if joined else 1
        self.rank = rank if rank is not None else dist.get_rank() if joined else 0
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.epoch = 0
        self.first_batch = 0
        self.drop_last = drop_last
        self._images = [index for index, (has_image, _) in enumerate(modality_lengths) if has_image]
        self._texts = [index for index, (has_image, _) in enumerate(modality_lengths) if not has_image]
        self._lengths = [length for _, length in modality_lengths]
        if not modality_lengths:
            raise UserError("there are no rows to train on")
        if not 0 <= self.rank < self.num_replicas:
            raise UserError(f"rank {self.rank} is not one of {self.num_replicas} processes")
        if global_batch_size < 1 or global_batch_size % self.num_replicas:
            below = global_batch_size // self.num_replicas * self.num_replicas
            raise UserError(
                f"a global batch of {global_batch_size} rows does not divide among {self.num_replicas} processes: use "
                f"{f'{below} or ' if below else ''}{below + self.num_replicas}"
            )
        if len(self) == 0:
            raise UserError(
                f"no batch of {global_batch_size} rows can be filled from {len(self._images)} rows with an image and "
                f"{len(self._texts)} of text only: use a smaller global batch, or drop_last=False"
            )

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch that the next iteration yields, and the global batch that it begins with."""
        self.epoch = epoch
        self.first_batch = first_batch

    @property
    def batches_per_epoch(self) -> int:
        """Global batches of one pass over the data."""
        rounded = math.floor if self.drop_last else math.ceil
        return sum(rounded(len(rows) / self.global_batch_size) for rows in (self._images, self._texts))

    def __len__(self) -> int:
        return (self.batches_per_epoch - self.first_batch) * self.global_batch_size // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        share = self.global_batch_size // self.num_replicas
        for batch in self.global_batches(self.epoch)[self.first_batch :]:
            yield from batch[self.rank * share : (self.rank + 1) * share]

    def global_batches(self, epoch: int) -> list[list[int]]:
        """Return all global batches of an epoch, in order; each process takes an equal, contiguous part of each.

        Which rows a batch holds depends on seed and epoch only; their order within it, on the number of processes too.
        """
        generator = torch.Generator().manual_seed(self.seed + epoch)
        batches = self._cut_batches(self._images, generator)
        image_batches = len(batches)
        batches += self._cut_batches(self._texts, generator)
        dealt = [self._deal_rows(batch) for batch in batches]
        # The longest row of a batch is the first one dealt to the first process.
        patches = [_COUNTED_PATCHES if index < image_batches else 0 for index in range(len(dealt))]
        longest = [self._lengths[batch[0]] + extra for batch, extra in zip(dealt, patches, strict=True)]
        order = torch.randperm(len(dealt), generator=generator).tolist()
        front = max(range(len(order)), key=lambda position: longest[order[position]])
        order[0], order[front] = order[front], order[0]
        return [dealt[index] for index in order]

    def _cut_batches(self, rows: list[int], generator: torch.Generator) -> list[list[int]]:
        """Shuffle the rows of one modality and cut them into global batches."""
        if not rows:
            return []
        size = self.global_batch_size
        shuffled = [rows[index] for index in torch.randperm(len(rows), generator=generator).tolist()]
        batches = [shuffled[begin : begin + size] for begin in range(0, len(shuffled), size)]
        missing = size - len(batches[-1])
        if missing and self.drop_last:
            batches.pop()
        elif missing:
            batches[-1] += islice(cycle(shuffled), missing)
        return batches

    def _deal_rows(self, batch: list[int]) -> list[int]:
        """Sort a batch, longest first, and deal it to the processes: each row to the one with the least so far."""
        share = len(batch) // self.num_replicas
        parts: list[list[int]] = [[] for _ in range(self.num_replicas)]
        heap: list[tuple[int, int]] = [(0, part) for part in range(self.num_replicas)]
        for row in sorted(batch, key=lambda row: -self._lengths[row]):
            total, part = heapq.heappop(heap)
            parts[part].append(row)
            if len(parts[part]) < share:
                heapq.heappush(heap, (total + self._lengths[row], part))
        return [row for part in parts for row in part]
