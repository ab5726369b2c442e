"""Evaluation of a model while it trains: the loss on held-out rows, and answers about a few of them."""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import default_collate

from cobra.models.backbones.vision import PixelValues
from cobra.models.backbones.vision.transforms import map_pixels
from cobra.models.vlms import CobraVLM, as_turn
from cobra.preprocessing.datasets import FinetuneDataset
from cobra.preprocessing.datasets.rows import source_of
from cobra.training.batches import Batch
from cobra.training.objective import Objective
from cobra.training.samples import SampledRow, SampleLog, structure
from cobra.training.validation import Validation, evaluation_mode
from cobra.util.conversation import without_placeholder
from cobra.util.data_utils import IGNORE_INDEX, SKIPPED_ROW
from cobra.util.distributed import World
from cobra.util.torch_utils import bf16_autocast


class Evaluator:
    """Held-out rows (`dataset`), and those that are asked about (`rows`), the same at every evaluation."""

    def __init__(
        self,
        dataset: FinetuneDataset,
        collator: Callable[[Any], Batch],
        modality_lengths: Sequence[tuple[bool, int]],
        per_device_batch_size: int,
        samples: int = 4,
        max_new_tokens: int = 256,
        objective: Objective | None = None,
    ) -> None:
        """Choose the rows and read them.

        Args:
            dataset: The held-out rows.
            collator: From rows to a batch.
            modality_lengths: (has an image, length) of every row.
            per_device_batch_size: Rows of one forward pass on one process.
            samples: Rows that are asked about, spread over the sources; 0 takes the loss alone.
            max_new_tokens: Longest answer in tokens.
            objective: Weight and loss of a batch; None is next-token cross-entropy.

        Raises:
            UserError: A chosen row's image cannot be read, and such rows are not skipped.
        """
        self.dataset = dataset
        self._validation = Validation(dataset, collator, modality_lengths, per_device_batch_size, objective)
        self._size = per_device_batch_size
        self._max_new_tokens = max_new_tokens
        self.rows: list[SampledRow] = []
        self._pixels: list[PixelValues | None] = []
        for row in spread([source_of(dataset.examples[index]) for index in range(len(dataset))]):
            if len(self.rows) == samples:
                break
            self._add_row(dataset, row)
        self._log = SampleLog(self.rows)

    def _add_row(self, dataset: FinetuneDataset, row: int) -> None:
        """Take a row to ask about, unless it has no answer within the longest text, or is skipped for its image."""
        values = dataset.examples[row]
        turns = values["conversations"]
        if len(turns) < 2:
            return
        example = dataset[row]
        if SKIPPED_ROW in example or not bool((example["labels"] != IGNORE_INDEX).any()):
            return
        question = without_placeholder(turns[0]["value"])
        self.rows.append(SampledRow(row, values.get("id"), values.get("image"), question, turns[1]["value"]))
        self._pixels.append(example["pixel_values"])

    def cut_back(self, run_dir: Path, last_step: int) -> None:
        """Forget the answers after a step that a run goes on from; 0 forgets all. For the main process alone."""
        self._log.cut_back(run_dir, last_step)

    def evaluate(
        self,
        vlm: CobraVLM,
        world: World,
        mixed_precision: bool,
        step: int,
        run_dir: Path,
        between: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Take the loss on all held-out rows and answer the chosen ones; every process has to call it.

        The model keeps its modes, gradients and shards; no random number is drawn. The main process appends the answers
        to `samples.jsonl`, or says that the disk is full.

        Args:
            vlm: The model. A sharded one is gathered on every process for the answers: all its parameters, as they are
                held, have to fit beside the optimiser's state.
            world: The processes.
            mixed_precision: Compute in bf16.
            step: Steps done.
            run_dir: Directory of the run.
            between: Called between batches, as often on every process; may raise, and nothing is written then.

        Returns:
            The same on every process: `Validation Loss`, the mean over all labelled tokens; `Valid Stages`, the share
            of answers whose four stages are in order; `Conclusion Match`, the share whose CONCLUSION says the same
            among the answers that have one, as their reference has, and absent where there are none.

        Raises:
            UserError: A row cannot be read.
        """
        with evaluation_mode(vlm):
            values = {"Validation Loss": self._validation.loss(vlm, world, mixed_precision, between)}
            if not self.rows:
                return values
            with gathered(vlm), bf16_autocast(world.device, mixed_precision):
                answers = self._answers(vlm, between)
        try:
            if world.is_main:
                self._log.write(run_dir, step, answers)
        except OSError as error:
            text = f"warning: the answers of step {step} could not be written to {run_dir} ({error}); the run goes on"
            print(text, file=sys.stderr, flush=True)
        return values | self._shares(answers, world)

    def _answers(self, vlm: CobraVLM, between: Callable[[], None]) -> list[str]:
        """Answer the rows greedily, in batches of rows with an image and of rows without one."""
        answers = [""] * len(self.rows)
        for wanted in (True, False):
            alike = [index for index, pixels in enumerate(self._pixels) if (pixels is not None) == wanted]
            for begin in range(0, len(alike), self._size):
                between()
                batch = alike[begin : begin + self._size]
                pixels = [row_pixels for index in batch if (row_pixels := self._pixels[index]) is not None]
                stacked = map_pixels(default_collate(pixels), lambda value: value.to(vlm.device)) if pixels else None
                prompts = [as_turn(vlm, self.rows[index].question) for index in batch]
                written = vlm.generate_batch(stacked, prompts, max_new_tokens=self._max_new_tokens, do_sample=False)
                for index, answer in zip(batch, written, strict=True):
                    answers[index] = answer
        return answers

    def _shares(self, answers: list[str], world: World) -> dict[str, float]:
        """Return the shares of what the main process has been answered: rounding may differ between devices."""
        pairs = zip(answers, self.rows, strict=True)
        counts = structure((answer, row.reference, row.question) for answer, row in pairs)
        shared = torch.tensor(counts if world.is_main else [0] * len(counts), device=world.device)
        total, valid, compared, matched = world.sum(shared).tolist()
        shares = {"Valid Stages": valid / total}
        return shares | {"Conclusion Match": matched / compared} if compared else shares


def spread(sources: Sequence[str]) -> list[int]:
    """Return the numbers of all rows: the first row of every source, the biggest source first, then the second, ..."""
    rows = defaultdict[str, list[int]](list)
    for row, name in enumerate(sources):
        rows[name].append(row)
    turns = zip_longest(*(rows[name] for name in sorted(rows, key=lambda name: (-len(rows[name]), name))))
    return [row for row in chain.from_iterable(turns) if row is not None]


@contextmanager
def gathered(vlm: CobraVLM) -> Iterator[None]:
    """Hold all parameters whole on every process for a while; inside :func:`evaluation_mode`, after a forward pass.

    Else each token would gather the model, 11 GB for 3 billion parameters, and processes that disagree about the last
    token would wait for ever.
    """
    freed = []
    for unit in vlm.modules():
        if isinstance(unit, FSDPModule):
            shards = _shards(unit)
            unit.unshard()
            # FSDP2 does not tell what it was asked for, but the forward pass before this has shown it.
            if _shards(unit) < shards:
                freed.append(unit)
    for unit in freed:
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in freed:
            unit.set_reshard_after_forward(True, recurse=False)


def _shards(unit: nn.Module) -> int:
    return sum(isinstance(parameter, DTensor) for parameter in unit.parameters())
