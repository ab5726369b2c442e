"""The training loop: steps in order, each followed by its parts, from the first or from a saved state."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from cobra.training.batches import Batch, grouped, mark_skipped, open_loader, to_device
from cobra.training.preemption import StopAsked, StopRequests
from cobra.training.progress import StepProgress
from cobra.training.run_context import RunContext, StepPart, StepReport
from cobra.training.strategy import StepResult, TrainStrategy
from cobra.util.batching_utils import SplitModalitySampler
from cobra.util.errors import SharedError, UserError
from cobra.util.torch_utils import seed_step

# Rows that an error names at most.
_NAMED_ROWS = 20


class TrainingLoop:
    """One start of a run, from the step that was reached to the last one or to a request to stop.

    Attributes:
        context: The run, as the parts that follow a step see it.
        parts: Parts that follow a step, in order; see :func:`cobra.training.after_step.step_parts`.
    """

    def __init__(
        self,
        strategy: TrainStrategy,
        dataset: Dataset,
        collator: Callable[[Any], Batch],
        modality_lengths: Sequence[tuple[bool, int]],
        run_dir: Path,
        parts: Sequence[StepPart],
        seed: int = 7,
        num_workers: int = 0,
        setting: dict[str, Any] | None = None,
        keep_checkpoints: int = 2,
        max_skipped: int = 10,
    ) -> None:
        """Plan the steps.

        Args:
            strategy: Set up; trained in place.
            dataset: Rows.
            collator: From rows to a batch.
            modality_lengths: (has an image, length) of every row.
            run_dir: Directory of checkpoints and states.
            parts: Parts that follow a step, in order.
            seed: Seed for data order and dropout.
            num_workers: Processes that read rows, for each training process.
            setting: Values that have to stay the same when the run goes on later.
            keep_checkpoints: States that are kept.
            max_skipped: Steps in a row whose loss or gradient is not finite before the run stops.
        """
        values, world = strategy.hyperparameters, strategy.world
        self.strategy, self.world, self.dataset, self.collator = strategy, world, dataset, collator
        self.parts, self.seed, self.max_skipped = list(parts), seed, max_skipped
        size = values.global_batch_size
        self.sampler = SplitModalitySampler(dataset, modality_lengths, size, world.size, world.rank, seed)
        self.plan = strategy.plan(self.sampler)
        pinned = world.device.type == "cuda"
        self.loader = open_loader(dataset, collator, self.sampler, values.per_device_batch_size, num_workers, pinned)
        self.context = RunContext(strategy, self.plan, run_dir, setting, keep_checkpoints)
        self._bad_images = torch.zeros(len(modality_lengths), dtype=torch.int32)
        self._unreported: StepResult | None = None

    def restore(self, path: Path) -> None:
        """Go on from a saved state; see :meth:`RunContext.restore`."""
        self._unreported = self.context.restore(path)

    def run(self, stop: StopRequests | None = None) -> StepResult | None:
        """Train to the last step.

        Args:
            stop: Requests to stop, taken between steps from now on; by default none are.

        Returns:
            The result of the last step; None where an earlier start had done them all.

        Raises:
            Stopped: The run was asked to stop; its state is saved.
            UserError: A row cannot be read, too many steps in a row were not finite, or the last checkpoint could not
                be written; the state before is kept.
        """
        stop = stop or StopRequests()
        stop.wait_for_steps()
        stop.leave_before_steps(self.world)
        strategy, plan, run, result = self.strategy, self.plan, self.context, self._unreported
        began = strategy.global_step - (result is not None)
        with StepProgress(plan.total_steps, self.world.is_main, began) as progress, run.under_way(stop, progress):
            if result is not None:
                self._follow(result)
            for epoch in self._epochs_left():
                self.sampler.set_epoch(epoch, strategy.global_step - epoch * plan.batches_per_epoch)
                for read in grouped(self.loader, plan.accumulation_steps):
                    started = time.monotonic()
                    batches = self._readable(read, began)
                    mark_skipped(batches, self._bad_images)
                    seed_step(self.seed, strategy.global_step, self.world.rank)
                    result = strategy.train_step(batches, strategy.rate(strategy.global_step, plan.total_steps))
                    run.longest_step = max(run.longest_step, time.monotonic() - started)
                    self._stop_if_broken(result)
                    self._follow(result)
                    if strategy.global_step == plan.total_steps:
                        break
        strategy.skipped_rows = int(self.world.sum(self._bad_images.to(self.world.device)).count_nonzero())
        return result

    def _epochs_left(self) -> range:
        step, plan = self.strategy.global_step, self.plan
        return range(step // plan.batches_per_epoch, plan.epochs if step < plan.total_steps else 0)

    def _readable(self, read: list[Batch] | UserError, began: int) -> list[Batch]:
        """Return the batches of a step; where any process has met a bad row, save the state before it and raise."""
        bad = torch.tensor(int(isinstance(read, UserError)), device=self.world.device)
        if not self.world.max(bad).item():
            assert isinstance(read, list)
            return read
        errors = self.world.gather(read if isinstance(read, UserError) else None)
        first = next(error for error in errors if error is not None)
        step, folder = self.strategy.global_step, self.context.saver.folder
        if step == began:
            raise SharedError(f"{first}. No step was done since the start")
        problem = self.context.save_now()
        kept = f"could not be saved ({problem}); earlier ones are in" if problem else "is saved in"
        raise SharedError(f"{first}. The state after step {step} {kept} {folder}: the same command goes on")

    def _stop_if_broken(self, result: StepResult) -> None:
        """Warn of a step that changed nothing; after too many in a row save the state and stop.

        Raises:
            SharedError: Too many were skipped in a row, or, which is known after the last step, more than half of all.
        """
        strategy, run, steps = self.strategy, self.context, self.plan.total_steps
        if strategy.global_step == steps and 2 * strategy.skipped_steps > steps:
            raise SharedError(
                f"{strategy.skipped_steps:,} of {steps:,} steps had a loss or gradient that is not a finite number, "
                "and changed nothing: the run has failed, and no checkpoint of its last step is written. Begin anew "
                "under another --run_id, with a lower learning rate or without the rows that the warnings name"
            )
        if not result.skipped:
            return
        step, in_a_row = strategy.global_step, strategy.skipped_in_a_row
        run.progress.say(
            f"warning: step {step} changed nothing: its loss ({result.loss}) or gradient ({result.grad_norm}) is not a "
            f"finite number ({strategy.skipped_steps} such steps, {in_a_row} in a row)"
        )
        if in_a_row < self.max_skipped:
            return
        rows = self._broken_rows()
        kept = "the weights are not finite either, so their state was not saved"
        if strategy.is_finite():
            problem, folder = run.save_now(), run.saver.folder
            kept = f"the state before them is saved in {folder}"
            if problem:
                kept = f"the state before them could not be saved ({problem}), an earlier one is in {folder}"
        raise SharedError(
            f"{in_a_row} steps in a row, up to step {step}, had a loss or gradient that is not a finite "
            f"number, and changed nothing; {kept}. {rows}. Look at these rows and their images, use a lower learning "
            "rate, or allow more with --max_skipped."
        )

    @torch.no_grad()
    def _broken_rows(self) -> str:
        """Name the rows of the last step whose loss alone is not finite; each process looks at its own."""
        strategy, world, dataset = self.strategy, self.world, self.dataset
        epoch, place = divmod(strategy.global_step - 1, self.plan.batches_per_epoch)
        batch = self.sampler.global_batches(epoch)[place]
        share = len(batch) // world.size
        names = []
        for row in batch[world.rank * share : (world.rank + 1) * share]:
            collated = to_device(self.collator([dataset[row]]), world.device)
            loss = strategy.objective.loss(strategy.vlm, strategy.objective.prepare(strategy.vlm, collated))
            if not bool(torch.isfinite(loss)):
                names.append(_name(dataset, row))
        broken = [name for share_names in world.gather(names) for name in share_names]
        everyone = broken or [_name(dataset, row) for row in batch]
        what = "Rows whose loss is not finite" if broken else "Each row's loss is finite by itself; the rows were"
        more = f" and {len(everyone) - _NAMED_ROWS} more" if len(everyone) > _NAMED_ROWS else ""
        return f"{what}: {', '.join(everyone[:_NAMED_ROWS])}{more}"

    def _follow(self, result: StepResult) -> None:
        """Call the parts that follow a step; where one of them stops, all are the first thing of the next start."""
        step, plan = self.strategy.global_step, self.plan
        ends_epoch = step == plan.total_steps or step % plan.batches_per_epoch == 0
        report = StepReport(step, result, self.strategy.rate(step - 1, plan.total_steps), ends_epoch)
        try:
            for part in self.parts:
                part(self.context, report)
        except StopAsked as asked:
            self.context.end(str(asked), result)


def _name(dataset: Dataset, row: int) -> str:
    examples = getattr(dataset, "examples", None)
    return f"row {row}" if examples is None else f"row {row} (id {examples[row].get('id')!r})"
