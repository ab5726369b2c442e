"""State of a run under way, shared by the loop and the parts that follow its steps."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch

from cobra.training.flops import count_flops
from cobra.training.preemption import Stopped, StopRequests
from cobra.training.progress import StepProgress
from cobra.training.run_state import RunSaver, RunState
from cobra.training.schedule import StepPlan
from cobra.training.strategy import StepResult, TrainStrategy
from cobra.util.errors import SharedError, UserError
from cobra.util.printable import printable
from cobra.util.waiting import tell_waiting

# Seconds that a save is taken for before the first of this start has been measured.
_UNMEASURED_SAVE = 60.0
# Between the end of a save and that of the job: processes leave, and clocks differ.
_JOB_MARGIN = 30.0


class RunContext:
    """A run under way: where it is, its saved states, and its end where that is asked for.

    Attributes:
        strategy: Trains the model; its counters say which step the run has reached.
        world: The processes; those methods that save or stop have to be called by each.
        plan: Steps and epochs of the run.
        run_dir: Directory of the run.
        flops: Operations of the model.
        saver: Saves the run's state.
        stop: Requests to stop; set, as `progress`, when the loop begins.
        progress: Line that the user sees.
        best: Lowest loss on held-out rows of a model that was saved; None before the first.
        longest_step: Seconds of this start's longest step.
        last_save: Monotonic time at which the last save of the state was begun.
    """

    def __init__(
        self,
        strategy: TrainStrategy,
        plan: StepPlan,
        run_dir: Path,
        setting: dict[str, Any] | None = None,
        keep_checkpoints: int = 2,
    ) -> None:
        """Prepare to save; nothing is written yet.

        `setting` has to stay the same when the run goes on later; of its states `keep_checkpoints` are kept.
        """
        self.strategy, self.world, self.plan, self.run_dir = strategy, strategy.world, plan, run_dir
        # By every process: counting a sharded model may send messages.
        self.flops = count_flops(strategy.vlm)
        self.saver = RunSaver(run_dir, self.world, strategy.vlm, strategy.optimizer, keep_checkpoints)
        self.stop: StopRequests
        self.progress: StepProgress
        self.best: float | None = None
        self.longest_step = 0.0
        self.last_save = time.monotonic()
        self._setting = setting or {}

    def restore(self, path: Path) -> StepResult | None:
        """Go on from a saved state.

        Returns:
            The result of the state's last step, where the run was stopped before what follows that step was done.

        Raises:
            UserError: It cannot be read, or is of a step that the run does not have.
        """
        state, strategy = self.saver.restore(path), self.strategy
        remedy = "delete that folder to go on from the one before it"
        if not strategy.is_finite():
            raise SharedError(f"the state {path} holds weights that are not finite numbers: {remedy}")
        if state.step > self.plan.total_steps:
            steps = f"{state.step:,} steps are done, and the run has {self.plan.total_steps:,}"
            raise UserError(f"the state {path} says that {steps}: {remedy}")
        strategy.global_step, strategy.tokens = state.step, state.tokens
        strategy.skipped_steps, strategy.skipped_in_a_row = state.skipped, state.skipped_in_a_row
        self.best = state.best_validation_loss
        try:
            return None if state.unreported is None else StepResult.read(state.unreported)
        except ValueError as error:
            problem = f"{printable(str(error), 300)} in its unreported step"
            raise UserError(f"the state {path} cannot be read: {problem}. {remedy.capitalize()}") from error

    def reserve(self) -> float:
        """Return the seconds before the end of a job in which no more than a step and a save fit."""
        return self.longest_step + 2 * (self.saver.seconds or _UNMEASURED_SAVE) + _JOB_MARGIN

    def leave_if_asked(self) -> None:
        """Raise StopAsked where any process is asked to stop, or the job's time ends; every process has to call it."""
        self.stop.leave_if_asked(self.world, self.reserve())

    def save(self, unreported: StepResult | None = None) -> None:
        """Begin to save the state; `unreported` is the last step where what follows it has not been done."""
        strategy, rest = self.strategy, None if unreported is None else asdict(unreported)
        step, tokens, skipped = strategy.global_step, strategy.tokens, strategy.skipped_steps
        state = RunState(step, tokens, skipped, self.best, self._setting, strategy.skipped_in_a_row, rest)
        self.warn_unsaved(self.saver.begin(state))
        self.last_save = time.monotonic()

    def save_now(self) -> str | None:
        """Save the state and wait for it; return why that failed, if it did."""
        self.save()
        return self.saver.finish()

    def end(self, reason: str, unreported: StepResult | None = None) -> NoReturn:
        """Save the state where there is time for it, and stop; see :meth:`save` and :class:`Stopped`.

        Raises:
            Stopped: In any case.
        """
        step = self.strategy.global_step
        self.warn_unsaved(self.saver.finish())
        times = torch.tensor([self.saver.seconds or 0.0, -self.stop.seconds_left()], device=self.world.device)
        needed, over = self.world.max(times).tolist()
        if needed > -over:
            self.progress.say(
                f"warning: the state of step {step} is not saved: that takes about {needed:.0f} s, and "
                f"{max(-over, 0):.0f} s are left before the program is killed. Grant more time with torchrun "
                "--shutdown-timeout, or say with --stop_grace_seconds that there is more"
            )
            raise Stopped(reason, step, saved=False)
        self.save(unreported)
        with tell_waiting("writing the state of the run", self.progress.say):
            problem = self.saver.finish()
        self.warn_unsaved(problem)
        raise Stopped(reason, step, saved=problem is None)

    @contextmanager
    def under_way(self, stop: StopRequests, progress: StepProgress) -> Iterator[None]:
        """Train inside; afterwards, an error too, the save that is being written is completed for the next start."""
        self.stop, self.progress = stop, progress
        try:
            yield
        # Not KeyboardInterrupt: the second one ends the program at once.
        except Exception:
            self._finish_save()
            raise
        self._finish_save()

    def _finish_save(self) -> None:
        with tell_waiting("writing the state of the run", self.progress.say):
            self.warn_unsaved(self.saver.finish())

    def warn_unsaved(self, problem: str | None) -> None:
        """Warn of a save that has failed, for the reason given; None is no failure."""
        if problem:
            self.progress.say(
                f"warning: the state of the run could not be saved ({problem}); the run goes on, and the last whole "
                f"state in {self.saver.folder} is kept"
            )


@dataclass
class StepReport:
    """A finished step, and the numbers that are logged with it."""

    step: int
    """Steps done, from 1."""
    result: StepResult
    rate: float
    """Learning rate of the step."""
    ends_epoch: bool
    """True after the last step of an epoch or of the run."""
    values: dict[str, float] = field(default_factory=dict)
    """Further numbers to log, by name; each part may add its own."""


class StepPart(Protocol):
    """A part of what follows a step (validating, saving, logging); called after every step, on every process."""

    def __call__(self, run: RunContext, report: StepReport) -> None:
        """Follow a step; `report` is changed in place by parts that add numbers to log.

        Raises:
            StopAsked: A request to stop is to be met at once, before the step is logged: its parts are all called
                again by the next start. :meth:`RunContext.leave_if_asked` raises it.
        """
