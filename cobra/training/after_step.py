"""Parts that follow every step: validation, the best and the latest model, the log, and the state of the run."""

import math
import time
from collections.abc import Sequence

from cobra.training.checkpointing import LeftUnwrittenError, NotSavedError, save_checkpoint
from cobra.training.evaluator import Evaluator
from cobra.training.flops import flops_per_step
from cobra.training.metrics import Metrics
from cobra.training.run_context import RunContext, StepPart, StepReport

_LOSS = "Validation Loss"


def step_parts(
    metrics: Metrics | None,
    evaluator: Evaluator | None = None,
    eval_interval_steps: int | None = None,
    keep_epochs: int | None = None,
    save_interval_steps: int | None = None,
    save_interval_minutes: float | None = None,
    further: Sequence[StepPart] = (),
) -> list[StepPart]:
    """Return what follows a step, in order; for the options see the flags of the same names.

    Args:
        metrics: Trackers, on the main process; None elsewhere.
        evaluator: Held-out rows; None validates nothing.
        eval_interval_steps: Steps between two validations; None validates at the end of every epoch and of the run.
        keep_epochs: Checkpoints of epochs' ends that are kept, the newest; None keeps all.
        save_interval_steps: Steps that a kill costs at most; None saves by time alone.
        save_interval_minutes: Minutes between two saves of the state; None saves by steps alone.
        further: Parts of one's own, called once the model is saved and before the step is logged.
    """
    validation = [] if evaluator is None else [Validate(evaluator, metrics, eval_interval_steps)]
    return [
        *validation,
        SaveModel(keep_epochs),
        *further,
        Log(metrics),
        SaveState(save_interval_steps, save_interval_minutes),
    ]


class Validate:
    """Validates the model on held-out rows at an interval, and at the end of every epoch and of the run."""

    def __init__(self, evaluator: Evaluator, metrics: Metrics | None, interval: int | None) -> None:
        self._evaluator, self._metrics, self._interval = evaluator, metrics, interval

    def __call__(self, run: RunContext, report: StepReport) -> None:
        """Add the loss on held-out rows, and shares of the answers about them, to the report.

        Raises:
            StopAsked: Before or between batches.
        """
        if not (report.ends_epoch or (self._interval is not None and report.step % self._interval == 0)):
            return
        if self._metrics is not None:
            self._metrics.stop_clock()
        values = self._evaluator.evaluate(
            run.strategy.vlm, run.world, run.strategy.mixed_precision, report.step, run.run_dir, run.leave_if_asked
        )
        texts = [f"loss {values[_LOSS]:.4f}"]
        texts += [f"{name.lower()} {value:.0%}" for name, value in values.items() if name != _LOSS]
        run.progress.say(f"step {report.step}: held-out rows: {', '.join(texts)}")
        report.values |= values


class SaveModel:
    """Saves the model at the end of epochs, and whenever its loss on held-out rows is the best so far."""

    def __init__(self, keep_epochs: int | None) -> None:
        self._keep_epochs = keep_epochs

    def __call__(self, run: RunContext, report: StepReport) -> None:
        """Save the model where that is due: before the state of this step, so that a run going on from it has it.

        Raises:
            NotSavedError: There is no room for the model of the last step.
            StopAsked: Before it was written.
        """
        loss = report.values.get(_LOSS, math.inf)
        # A loss that is not a number is never the best: no later one would be less than it.
        best = loss < (math.inf if run.best is None else run.best)
        milestone = run.plan.is_milestone(report.step)
        if (milestone or best) and self._save(run, report, milestone, best) and best:
            run.best = loss

    def _save(self, run: RunContext, report: StepReport, milestone: bool, best: bool) -> bool:
        """Save the model; return True if there was room for it."""
        step, epoch = report.step, (report.step - 1) // run.plan.batches_per_epoch + 1
        run.leave_if_asked()
        try:
            save_checkpoint(
                run.strategy.vlm,
                run.run_dir,
                run.world,
                step,
                epoch,
                report.result.loss,
                milestone,
                best,
                self._keep_epochs,
                lambda: run.stop.is_asked,
            )
        except LeftUnwrittenError:
            run.stop.leave_if_asked(run.world)
        except NotSavedError as error:
            if step == run.plan.total_steps:
                raise
            run.progress.say(
                f"warning: the checkpoint of step {step} could not be written ({error.reason}); the run goes on, and "
                "the checkpoints before it are kept"
            )
            return False
        return True


class Log:
    """Writes the step to the trackers and shows it."""

    def __init__(self, metrics: Metrics | None) -> None:
        self._metrics = metrics

    def __call__(self, run: RunContext, report: StepReport) -> None:
        """Write the step; afterwards it counts as reported."""
        result, strategy = report.result, run.strategy
        values = {"Loss (Raw)": result.loss, "Learning Rate": report.rate, "Gradient Norm": result.grad_norm}
        if self._metrics is not None:
            values = self._metrics.commit(
                report.step,
                result.loss,
                report.rate,
                result.grad_norm,
                result.tokens,
                strategy.hyperparameters.global_batch_size,
                report.values | {"Skipped": strategy.skipped_steps},
                flops=flops_per_step(run.flops, result.images, result.positions, result.tokens),
            )
        run.progress.advance(report.step, values)


class SaveState:
    """Saves the run's state at intervals and at the end of epochs, and stops the run where that is asked for."""

    def __init__(self, interval_steps: int | None, interval_minutes: float | None) -> None:
        self._steps, self._minutes = interval_steps, interval_minutes

    def __call__(self, run: RunContext, report: StepReport) -> None:
        """Save the state where that is due, or stop; the last step needs neither.

        Raises:
            Stopped: The run was asked to stop.
        """
        run.warn_unsaved(run.saver.poll())
        late = self._minutes is not None and time.monotonic() - run.last_save >= 60 * self._minutes
        reason, late = run.stop.agreed(run.world, late, run.reserve())
        # Twice an interval: while a state is being written, it is the one before that a kill falls back to.
        in_turn = self._steps is not None and report.step % max(1, self._steps // 2) == 0
        if report.step == run.plan.total_steps:
            return
        if reason:
            run.end(reason)
        if late or in_turn or run.plan.is_milestone(report.step):
            run.save()
            run.warn_unsaved(run.saver.finish() if self._steps == 1 else None)
