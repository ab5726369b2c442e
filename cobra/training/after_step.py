"""Parts that follow every step: validation, the best and the latest model, the log, and the state of the run."""

import math
import time
from collections.abc import Sequence
from functools import partial

from cobra.training.checkpointing import LeftUnwrittenError, NotSavedError, save_checkpoint
from cobra.training.evaluator import Evaluator
from cobra.training.flops import flops_per_step
from cobra.training.metrics import Metrics
from cobra.training.run_context import RunContext, StepPart, StepReport
from cobra.util.numbers import share
from cobra.util.waiting import tell_waiting

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
    validation = [] if evaluator is None else [partial(_validate, evaluator, metrics, eval_interval_steps)]
    return [
        *validation,
        partial(_save_model, keep_epochs),
        *further,
        partial(_log, metrics),
        partial(_save_state, save_interval_steps, save_interval_minutes),
    ]


def _validate(
    evaluator: Evaluator, metrics: Metrics | None, interval: int | None, run: RunContext, report: StepReport
) -> None:
    """Where it is due, add the loss on held-out rows, and shares of the answers about them, to the report."""
    if not (report.ends_epoch or (interval is not None and report.step % interval == 0)):
        return
    if metrics is not None:
        metrics.stop_clock()
    strategy = run.strategy
    with tell_waiting(f"step {report.step}: taking the loss on held-out rows and answering some", run.progress.say):
        values = evaluator.evaluate(
            strategy.vlm, run.world, strategy.mixed_precision, report.step, run.run_dir, run.leave_if_asked
        )
    texts = [f"loss {values[_LOSS]:.4f}"]
    texts += [f"{name.lower()} {share(value, 1, 0)}" for name, value in values.items() if name != _LOSS]
    run.progress.say(f"step {report.step}: held-out rows: {', '.join(texts)}")
    report.values |= values


def _save_model(keep_epochs: int | None, run: RunContext, report: StepReport) -> None:
    """Save the model where that is due: before the state of this step, so that a run going on from it has it."""
    loss, step = report.values.get(_LOSS, math.inf), report.step
    # A loss that is not a number is never the best: no later one would be less than it.
    best = loss < (math.inf if run.best is None else run.best)
    milestone = run.plan.is_milestone(step)
    if not (milestone or best):
        return
    run.leave_if_asked()
    try:
        with tell_waiting(f"step {step}: writing the checkpoint", run.progress.say):
            save_checkpoint(
                run.strategy.vlm,
                run.run_dir,
                run.world,
                step,
                (step - 1) // run.plan.batches_per_epoch + 1,
                report.result.loss,
                milestone,
                best,
                keep_epochs,
                lambda: run.stop.is_asked,
            )
    except LeftUnwrittenError:
        run.stop.leave_if_asked(run.world)
    except NotSavedError as error:
        if step == run.plan.total_steps:
            raise
        run.progress.say(
            f"warning: the checkpoint of step {step} could not be written ({error.reason}); the run goes on, and the "
            "checkpoints before it are kept"
        )
        return
    if best:
        run.best = loss


def _log(metrics: Metrics | None, run: RunContext, report: StepReport) -> None:
    """Write the step to the trackers and show it; afterwards it counts as reported."""
    result, strategy = report.result, run.strategy
    values = {"Loss (Raw)": result.loss, "Learning Rate": report.rate, "Gradient Norm": result.grad_norm}
    if metrics is not None:
        values = metrics.commit(
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


def _save_state(
    interval_steps: int | None, interval_minutes: float | None, run: RunContext, report: StepReport
) -> None:
    """Save the run's state where that is due, or stop the run where that is asked for; the last step needs neither."""
    run.warn_unsaved(run.saver.poll())
    late = interval_minutes is not None and time.monotonic() - run.last_save >= 60 * interval_minutes
    reason, late = run.stop.agreed(run.world, late, run.reserve())
    # Twice an interval: while a state is being written, it is the one before that a kill falls back to.
    in_turn = interval_steps is not None and report.step % max(1, interval_steps // 2) == 0
    if report.step == run.plan.total_steps:
        return
    if reason:
        run.end(reason)
    if late or in_turn or run.plan.is_milestone(report.step):
        run.save()
        run.warn_unsaved(run.saver.finish() if interval_steps == 1 else None)
