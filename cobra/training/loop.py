"""The training loop: steps in order, what follows each of them, and going on where an earlier start has stopped."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.utils.data import Dataset

from cobra.training.batches import Batch, grouped, mark_skipped, open_loader
from cobra.training.checkpointing import LeftUnwrittenError, NotSavedError, save_checkpoint
from cobra.training.config import LoopOptions
from cobra.training.evaluator import Evaluator
from cobra.training.flops import count_flops, flops_per_step
from cobra.training.metrics import Metrics
from cobra.training.preemption import StopAsked, Stopped, StopRequests
from cobra.training.progress import StepProgress
from cobra.training.run_state import RunSaver, RunState
from cobra.training.skipped_steps import broken_rows, fail_if_mostly_skipped
from cobra.training.strategy import StepResult, TrainStrategy
from cobra.util.batching_utils import SplitModalitySampler
from cobra.util.errors import SharedError, UserError
from cobra.util.printable import printable
from cobra.util.torch_utils import seed_step

# Seconds that a save is taken for before the first of this start has been measured.
_UNMEASURED_SAVE = 60.0
# Between the end of a save and that of the job: processes leave, and clocks differ.
_JOB_MARGIN = 30.0


class TrainingLoop:
    """One start of a run, from the step that was reached to the last one or to a request to stop."""

    def __init__(
        self,
        strategy: TrainStrategy,
        dataset: Dataset,
        collator: Callable[[Any], Batch],
        modality_lengths: Sequence[tuple[bool, int]],
        run_dir: Path,
        metrics: Metrics | None,
        seed: int = 7,
        num_workers: int = 0,
        evaluator: Evaluator | None = None,
        options: LoopOptions | None = None,
        setting: dict[str, Any] | None = None,
    ) -> None:
        """Plan the steps.

        Args:
            strategy: Set up; trained in place.
            dataset: Rows.
            collator: From rows to a batch.
            modality_lengths: (has an image, length) of every row.
            run_dir: Where checkpoints go.
            metrics: On the main process; None elsewhere.
            seed: Of the order of rows.
            num_workers: Processes that read rows, for each training process.
            evaluator: Looks at held-out rows.
            options: When to save, to validate and to give up.
            setting: What has to be the same for the run to go on later.
        """
        values = strategy.hyperparameters
        self.strategy, self.world, self.dataset, self.collator = strategy, strategy.world, dataset, collator
        self.run_dir, self.metrics, self.seed, self.evaluator = run_dir, metrics, seed, evaluator
        self.options = options or LoopOptions()
        self.setting = setting or {}
        self.sampler = SplitModalitySampler(
            dataset, modality_lengths, values.global_batch_size, self.world.size, self.world.rank, seed
        )
        self.plan = strategy.plan(self.sampler)
        pinned = self.world.device.type == "cuda"
        size = values.per_device_batch_size
        self.loader = open_loader(dataset, collator, self.sampler, size, num_workers, pinned)
        self.saver = RunSaver(run_dir, self.world, strategy.vlm, strategy.optimizer, self.options.keep_checkpoints)
        self.best: float | None = None
        self._flops = count_flops(strategy.vlm)
        self._bad_images = torch.zeros(len(modality_lengths), dtype=torch.int32)
        self._last_save = time.monotonic()
        self._longest_step = 0.0
        self._unreported: StepResult | None = None

    def restore(self, path: Path) -> None:
        """Go on from a saved state.

        Raises:
            UserError: It cannot be read, or is of a step that the run does not have.
        """
        state = self.saver.restore(path)
        if not self.strategy.is_finite():
            raise SharedError(
                f"the state {path} holds weights that are not finite numbers: delete that folder to go on from the one "
                "before it"
            )
        if state.step > self.plan.total_steps:
            raise UserError(
                f"the state {path} says that {state.step:,} steps are done, and the run has {self.plan.total_steps:,}: "
                "delete that folder to go on from the one before it"
            )
        self.strategy.global_step, self.strategy.tokens = state.step, state.tokens
        self.strategy.skipped_steps, self.strategy.skipped_in_a_row = state.skipped, state.skipped_in_a_row
        self.best = state.best_validation_loss
        try:
            self._unreported = None if state.unreported is None else StepResult.read(state.unreported)
        except ValueError as error:
            raise UserError(
                f"the state {path} cannot be read: {printable(str(error), 300)} in its unreported step. Delete that "
                "folder to go on from the one before it"
            ) from error

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
        strategy, plan, result = self.strategy, self.plan, self._unreported
        began = strategy.global_step - (result is not None)
        with StepProgress(plan.total_steps, self.world.is_main, began) as progress, self._finished_saves(progress):
            if result is not None:
                self._follow(result, stop, progress)
            for epoch in self._epochs_left():
                self.sampler.set_epoch(epoch, strategy.global_step - epoch * plan.batches_per_epoch)
                for read in grouped(self.loader, plan.accumulation_steps):
                    started = time.monotonic()
                    batches = self._readable(read, began, progress)
                    mark_skipped(batches, self._bad_images)
                    seed_step(self.seed, strategy.global_step, self.world.rank)
                    result = strategy.train_step(batches, strategy.rate(strategy.global_step, plan.total_steps))
                    self._longest_step = max(self._longest_step, time.monotonic() - started)
                    self._give_up_if_broken(result, epoch, progress)
                    self._follow(result, stop, progress)
                    if strategy.global_step == plan.total_steps:
                        break
        strategy.skipped_rows = int(self.world.sum(self._bad_images.to(self.world.device)).count_nonzero())
        return result

    def _readable(self, read: list[Batch] | UserError, began: int, progress: StepProgress) -> list[Batch]:
        """Return the batches of a step; where any process has met a bad row, save the state before the step and stop.

        Raises:
            UserError: A row cannot be read.
        """
        bad = torch.tensor(int(isinstance(read, UserError)), device=self.world.device)
        if not self.world.max(bad).item():
            assert isinstance(read, list)
            return read
        errors = self.world.gather(read if isinstance(read, UserError) else None)
        first = next(error for error in errors if error is not None)
        step = self.strategy.global_step
        if step == began:
            raise SharedError(f"{first}. No step was done since the start")
        self._save(progress)
        problem = self.saver.finish()
        kept = f"could not be saved ({problem}); earlier ones are in" if problem else "is saved in"
        raise SharedError(f"{first}. The state after step {step} {kept} {self.saver.folder}: the same command goes on")

    def _epochs_left(self) -> range:
        step, plan = self.strategy.global_step, self.plan
        return range(step // plan.batches_per_epoch, plan.epochs if step < plan.total_steps else 0)

    def _follow(self, result: StepResult, stop: StopRequests, progress: StepProgress) -> None:
        """Do what follows a step: look at held-out rows, save the model, log the step, save the state or stop.

        Raises:
            Stopped: The run was asked to stop; what was not done of this is the first thing of the next start.
        """
        try:
            self._report(result, stop, progress)
        except StopAsked as asked:
            self._stop(str(asked), stop, progress, result)
        self._save_or_stop(stop, progress)

    def _report(self, result: StepResult, stop: StopRequests, progress: StepProgress) -> None:
        """Validate and save the model where that is due, and log the step.

        Raises:
            StopAsked: Before the step was logged.
        """
        step, interval = self.strategy.global_step, self.options.eval_interval_steps
        rate = self.strategy.rate(step - 1, self.plan.total_steps)
        ends = step == self.plan.total_steps or step % self.plan.batches_per_epoch == 0
        due = ends or (interval is not None and step % interval == 0)
        found = self._evaluate(stop, progress) if due and self.evaluator is not None else {}
        held_out = found.get("Validation Loss", math.inf)
        # A loss that is not a number is never the best: no later one would be less than it.
        better = held_out < (math.inf if self.best is None else self.best)
        # Before the state of this step: a run that goes on from it has its files.
        milestone = self.plan.is_milestone(step)
        if (milestone or better) and self._save_model(result.loss, milestone, better, stop, progress):
            self.best = held_out if better else self.best
        values = {"Loss (Raw)": result.loss, "Learning Rate": rate, "Gradient Norm": result.grad_norm}
        if self.metrics is not None:
            rows = self.strategy.hyperparameters.global_batch_size
            flops = flops_per_step(self._flops, result.images, result.positions, result.tokens)
            extra = found | {"Skipped": self.strategy.skipped_steps}
            values = self.metrics.commit(
                step, result.loss, rate, result.grad_norm, result.tokens, rows, extra, flops=flops
            )
        progress.advance(step, values)

    def _save_model(self, loss: float, milestone: bool, best: bool, stop: StopRequests, progress: StepProgress) -> bool:
        """Save the model; return whether there was room for it.

        Raises:
            NotSavedError: There was none for the model of the last step.
            StopAsked: Before it was written.
        """
        step, vlm, keep = self.strategy.global_step, self.strategy.vlm, self.options.keep_epochs
        epoch = (step - 1) // self.plan.batches_per_epoch + 1
        stop.leave_if_asked(self.world, self._reserve())
        try:
            save_checkpoint(
                vlm, self.run_dir, self.world, step, epoch, loss, milestone, best, keep, lambda: stop.is_asked
            )
        except LeftUnwrittenError:
            stop.leave_if_asked(self.world)
        except NotSavedError as error:
            if step == self.plan.total_steps:
                raise
            progress.say(
                f"warning: the checkpoint of step {step} could not be written ({error.reason}); the run goes on, and "
                "the checkpoints before it are kept"
            )
            return False
        return True

    def _evaluate(self, stop: StopRequests, progress: StepProgress) -> dict[str, float]:
        """Look at the held-out rows.

        Raises:
            StopAsked: Before or between their batches.
        """
        assert self.evaluator is not None
        reserve = self._reserve()
        if self.metrics is not None:
            self.metrics.stop_clock()
        strategy = self.strategy
        found = self.evaluator.evaluate(
            strategy.vlm,
            self.world,
            strategy.mixed_precision,
            strategy.global_step,
            self.run_dir,
            lambda: stop.leave_if_asked(self.world, reserve),
        )
        told = [f"loss {found['Validation Loss']:.4f}"]
        told += [f"{name.lower()} {found[name]:.0%}" for name in found if name != "Validation Loss"]
        progress.say(f"step {strategy.global_step}: held-out rows: {', '.join(told)}")
        return found

    def _save_or_stop(self, stop: StopRequests, progress: StepProgress) -> None:
        """Save the run's state where that is due, at the end of an epoch too, and leave where that is asked.

        Raises:
            Stopped: The run was asked to stop.
        """
        step, options = self.strategy.global_step, self.options
        self._tell(self.saver.poll(), progress)
        minutes = options.save_interval_minutes
        late = minutes is not None and time.monotonic() - self._last_save >= 60 * minutes
        reason, late = stop.agreed(self.world, late, self._reserve())
        interval = options.save_interval_steps
        # Twice an interval: while a state is being written, it is the one before that a kill falls back to.
        in_turn = interval is not None and step % max(1, interval // 2) == 0
        in_turn = in_turn or self.plan.is_milestone(step)
        if step == self.plan.total_steps:
            return
        if reason:
            self._stop(reason, stop, progress)
        if late or in_turn:
            self._save(progress)
            self._tell(self.saver.finish() if interval == 1 else None, progress)

    def _stop(
        self, reason: str, stop: StopRequests, progress: StepProgress, unreported: StepResult | None = None
    ) -> NoReturn:
        """Save the state where there is time for it, and leave.

        Args:
            reason: Signal or limit, in words.
            stop: Knows how much time there is.
            progress: Says what is not saved.
            unreported: The last step, where what follows it has not been done.

        Raises:
            Stopped: In any case.
        """
        step = self.strategy.global_step
        self._tell(self.saver.finish(), progress)
        times = torch.tensor([self.saver.seconds or 0.0, -stop.seconds_left()], device=self.world.device)
        needed, over = self.world.max(times).tolist()
        if needed > -over:
            progress.say(
                f"warning: the state of step {step} is not saved: that takes about {needed:.0f} s, and "
                f"{max(-over, 0):.0f} s are left before the program is killed. Grant more time with torchrun "
                "--shutdown-timeout, or say with --stop_grace_seconds that there is more"
            )
            raise Stopped(reason, step, saved=False)
        self._save(progress, unreported)
        problem = self.saver.finish()
        self._tell(problem, progress)
        raise Stopped(reason, step, saved=problem is None)

    def _reserve(self) -> float:
        """Return the seconds before the end of a job in which no more than a step and a save fit."""
        return self._longest_step + 2 * (self.saver.seconds or _UNMEASURED_SAVE) + _JOB_MARGIN

    def _save(self, progress: StepProgress, unreported: StepResult | None = None) -> None:
        strategy = self.strategy
        skipped, in_a_row = strategy.skipped_steps, strategy.skipped_in_a_row
        rest = None if unreported is None else asdict(unreported)
        state = RunState(strategy.global_step, strategy.tokens, skipped, self.best, self.setting, in_a_row, rest)
        self._tell(self.saver.begin(state), progress)
        self._last_save = time.monotonic()

    @contextmanager
    def _finished_saves(self, progress: StepProgress) -> Iterator[None]:
        """Complete the save that is being written as the run ends, by an error too: the next start goes on from it."""
        try:
            yield
        # Not KeyboardInterrupt: the second one ends the program at once.
        except Exception:
            self._tell(self.saver.finish(), progress)
            raise
        self._tell(self.saver.finish(), progress)

    def _tell(self, problem: str | None, progress: StepProgress) -> None:
        if problem:
            progress.say(
                f"warning: the state of the run could not be saved ({problem}); the run goes on, and the last whole "
                f"state in {self.saver.folder} is kept"
            )

    def _give_up_if_broken(self, result: StepResult, epoch: int, progress: StepProgress) -> None:
        """Tell of a step that changed nothing; after too many in a row save the state and stop.

        Raises:
            UserError: Too many were skipped in a row, with the ids of the rows whose loss is not finite; or more than
                half of all steps were, which is known after the last one.
        """
        fail_if_mostly_skipped(self.strategy, self.plan.total_steps)
        if not result.skipped:
            return
        step, in_a_row = self.strategy.global_step, self.strategy.skipped_in_a_row
        progress.say(
            f"warning: step {step} changed nothing: its loss ({result.loss}) or gradient ({result.grad_norm}) is not a "
            f"finite number ({self.strategy.skipped_steps} such steps, {in_a_row} in a row)"
        )
        if in_a_row < self.options.max_skipped:
            return
        rows = broken_rows(self.strategy, self.sampler, self.dataset, self.collator, epoch)
        if self.strategy.is_finite():
            self._save(progress)
            problem = self.saver.finish()
            kept = f"the state before them is saved in {self.saver.folder}"
            if problem:
                kept = f"the state before them could not be saved ({problem}), an earlier one is in {self.saver.folder}"
        else:
            kept = "the weights are not finite either, so their state was not saved"
        raise SharedError(
            f"{in_a_row} steps in a row, up to step {step}, had a loss or gradient that is not a finite "
            f"number, and changed nothing; {kept}. {rows}. Look at these rows and their images, use a lower learning "
            "rate, or allow more with --max_skipped."
        )
