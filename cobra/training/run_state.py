"""State that a run needs to resume, saved while it trains and read back on any number of processes.

`{run_dir}/resume/step-000123/` holds the trained parameters and the optimiser's state as torch.distributed.checkpoint
writes them, and `state.json`. The sequence of rows, the learning rate and all random numbers follow from the step, so
the step is all that is kept of them. A folder has its name only when it is whole.
"""

import hashlib
import json
import math
import os
import re
import shutil
import time
import warnings
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.storage import WriteResult

from cobra.models.run_folder import LATEST
from cobra.training.state_reader import METADATA, StatePlanner, StateReader
from cobra.util.distributed import World
from cobra.util.errors import UserError, os_error_behind
from cobra.util.files import UNFINISHED, read_json, sha256_file, unfinished_files, write_json
from cobra.util.mounts import can_flush, flush_folder
from cobra.util.printable import printable
from cobra.util.redaction import reason

RESUME = "resume"

_STATE = "state.json"
_CHECKSUM = "sha256"
_METADATA_CHECKSUM = "metadata_sha256"
# One has some kB: flags, and hashes of rows and images.
_MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class RunState:
    """Values of a state that are kept beside the tensors."""

    step: int
    """Steps done, skipped ones too: global batches that have been seen."""
    tokens: int
    """Labelled tokens that have been trained on."""
    skipped: int
    """Steps that changed nothing, because the loss or the gradient was not finite."""
    best_validation_loss: float | None = None
    setting: dict[str, Any] = field(default_factory=dict)
    """Settings that have to be the same for the run to resume."""
    skipped_in_a_row: int = 0
    """The last steps that changed nothing, one after the other."""
    unreported: dict[str, Any] | None = None
    """Fields of the StepResult of the last step, where the run was stopped before what follows the step was done."""

    def __post_init__(self) -> None:
        """Raise a ValueError where the values, which come from a file, are of no run."""
        for name in ("step", "tokens", "skipped", "skipped_in_a_row"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"its {name} is {value!r} and must be a whole number of at least 0")
        if not self.skipped_in_a_row <= self.skipped <= self.step:
            raise ValueError(f"{self.skipped} of its {self.step} steps are skipped, {self.skipped_in_a_row} in a row")
        best = self.best_validation_loss
        if best is not None and not (isinstance(best, int | float) and math.isfinite(best)):
            raise ValueError(f"its best_validation_loss is {best!r} and must be a finite number or null")
        if not isinstance(self.setting, dict):
            raise ValueError(f"its setting is {self.setting!r} and must be an object")
        if not isinstance(self.unreported, dict | None):
            raise ValueError(f"its unreported is {self.unreported!r} and must be an object or null")

    @property
    def logged_step(self) -> int:
        """The last step that had been logged and looked at when the state was saved."""
        return self.step - (self.unreported is not None)


class RunSaver:
    """Saves the state of a run in the background, one at a time, and keeps the newest few.

    A save that fails (a full disk, say) costs nothing but itself: the run goes on and the last whole one stays.

    Attributes:
        seconds: Seconds that the last whole save took; None before the first.
    """

    def __init__(self, run_dir: Path, world: World, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int = 2):
        """Prepare to save; nothing is written yet. Every process takes part in every call; `keep` whole states stay."""
        self.folder = run_dir / RESUME
        self._world, self._model, self._optimizer, self._keep = world, model, optimizer, keep
        # Two lines at every save of a single process, which asks for just that. Not for the length of a call: torch
        # warns in a thread of its own.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        # A group of its own: its messages cross those of the training meanwhile.
        self._group = cast("dist.ProcessGroup", dist.new_group(backend="gloo")) if world.size > 1 else None
        self._pending: Future[Any] | None = None
        self._name = ""
        self._times: list[float] = []
        self.seconds: float | None = None

    def begin(self, state: RunState) -> str | None:
        """Copy the state to main memory and begin to write it; waits for an earlier save that is still being written.

        Returns:
            Why that earlier save failed, if it did.
        """
        problem = self.finish()
        began, times = time.monotonic(), list[float]()
        self._times, self._name = times, f"step-{state.step:06d}"
        if self._world.is_main:
            _remove(self._unfinished)
        self._world.barrier()
        writer = _Writer(self._unfinished, state if self._world.is_main else None)
        future = dcp.async_save(
            self._tensors(), storage_writer=writer, process_group=self._group, no_dist=self._world.size == 1
        )
        self._pending = cast("Future[Any]", future)
        self._pending.add_done_callback(lambda _: times.append(time.monotonic() - began))
        return problem

    def poll(self) -> str | None:
        """Complete a save that has been written; return why it failed, if it did. Returns at once."""
        return self.finish() if self._pending is not None and self._pending.done() else None

    def finish(self) -> str | None:
        """Wait for the save that is being written, if any, and complete it; return why it failed, if it did."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        try:
            pending.result()
            if self._world.is_main:
                self._complete()
            self.seconds = max(self._times, default=self.seconds)
        # torch's CheckpointException is a BaseException, as interrupts are, which must pass.
        except (Exception, CheckpointException) as error:
            if self._world.is_main:
                _remove(self._unfinished)
            return cause_of(error)
        return None

    @property
    def _unfinished(self) -> Path:
        return self.folder / (self._name + UNFINISHED)

    def _tensors(self) -> dict[str, Any]:
        # Frozen parameters come from where the run started, as at its start.
        options = StateDictOptions(ignore_frozen_params=True)
        model, optimizer = get_state_dict(self._model, self._optimizer, options=options)
        return {"model": model, "optimizer": optimizer}

    def _complete(self) -> None:
        target = self.folder / self._name
        # A start that is stopped before its first step saves the state that it went on from again.
        replaced = [_set_aside(target)] if os.path.lexists(target) else []
        self._unfinished.rename(target)
        flush_folder(self.folder)
        # It is saved: older ones that cannot be deleted, those of another user say, cost their room alone.
        with suppress(OSError):
            replaced += [_set_aside(old) for old in states(self.folder)[: -self._keep]]
        for path in replaced:
            _remove(path)

    def restore(self, path: Path) -> RunState:
        """Read a state into model and optimiser, in place; every process has to call it.

        Raises:
            UserError: It cannot be read, or is of another model.
        """
        tensors, state, alone = self._tensors(), read_state(path), self._world.size == 1
        try:
            reader, planner = StateReader(path), StatePlanner()
            dcp.load(tensors, storage_reader=reader, planner=planner, process_group=self._group, no_dist=alone)
        except (Exception, CheckpointException) as error:
            # torch catches the second interrupt from the keyboard too; that is no fault of the state.
            if any(isinstance(cause, KeyboardInterrupt) for cause, _ in getattr(error, "failures", {}).values()):
                raise KeyboardInterrupt from error
            raise _unreadable(path, error) from error
        set_state_dict(
            self._model,
            self._optimizer,
            model_state_dict=tensors["model"],
            optim_state_dict=tensors["optimizer"],
            options=StateDictOptions(ignore_frozen_params=True, strict=False),
        )
        return state


def states(folder: Path) -> list[Path]:
    """Return the whole states in a run's folder `resume`, oldest first."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if re.fullmatch(r"step-[0-9]{6,12}", path.name)]
    return sorted((path for path in named if (path / _STATE).is_file()), key=state_step)


def read_state(path: Path) -> RunState:
    """Read what is kept beside the tensors.

    Raises:
        UserError: It cannot be read.
    """
    try:
        if (path / _STATE).stat().st_size > _MOST_BYTES:
            raise ValueError(f"{_STATE} has more than {_MOST_BYTES:,} bytes")
        values = read_json(path / _STATE, "what is kept beside the tensors")
        if not isinstance(values, dict):
            raise ValueError(f"{_STATE} holds a {type(values).__name__} where an object was expected")
        # States of older versions lack both checksums.
        if _CHECKSUM in values and values.pop(_CHECKSUM) != _checksum(values):
            raise ValueError(f"{_STATE} is not what was written: its checksum differs")
        checksum = values.pop(_METADATA_CHECKSUM, None)
        if checksum is not None and checksum != sha256_file(path / METADATA):
            raise ValueError(f"{METADATA} is not what was written: its checksum differs")
        state = RunState(**values)
        if state.step != state_step(path):
            raise ValueError(f"its step is {state.step:,}, which is not that of its name")
        return state
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _unreadable(path, error) from error


def _checksum(values: dict[str, Any]) -> str:
    """Return the checksum of what is beside the tensors, whose archives have their own."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def state_step(path: Path) -> int:
    """Return the step of a state by its name."""
    return int(path.name.removeprefix("step-"))


def clear_unfinished(run_dir: Path) -> None:
    """Delete what a killed run has left of states, checkpoints and other files that it was writing or deleting."""
    for path in (run_dir / RESUME).glob(f"*{UNFINISHED}"):
        _remove(path)
    # By the names that atomic_path gives; those of checkpoints are as big as the model.
    for folder in (run_dir, run_dir / LATEST.parent):
        for path in unfinished_files(folder):
            path.unlink(missing_ok=True)


def cause_of(error: BaseException) -> str:
    """Return in one line what went wrong with a file, on whichever process; what the system has said, if it has."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"process {rank}: {cause_of(cause)}"
    # A writer that fails half-way may fail again when it closes its file, and tell of that alone.
    return reason(os_error_behind(error) or error)


class _Writer(dcp.FileSystemWriter):
    """Writes what is kept beside the tensors too, and tells every process why one of them could not write."""

    def __init__(self, path: Path, state: RunState | None) -> None:
        super().__init__(path, sync_files=can_flush(path.parent))
        self._state = state

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            # The other processes are sent an exception without its context, in which the reason may be.
            raise OSError(cause_of(error)) from error

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        # On the main process alone, after all others have written their tensors.
        assert self._state is not None
        path = Path(self.path)
        values = asdict(self._state) | {_METADATA_CHECKSUM: sha256_file(path / METADATA)}
        write_json(path / _STATE, values | {_CHECKSUM: _checksum(values)})


def _unreadable(path: Path, error: BaseException) -> UserError:
    return UserError(
        f"the state {path} cannot be read: {printable(cause_of(error))}. Delete that folder to go on "
        "from the one before it, or give --resume none and another --run_id to begin anew."
    )


def delete_states(run_dir: Path) -> None:
    """Delete the states of a run that is finished, and their folder; one that is a link stays, empty."""
    for path in states(run_dir / RESUME):
        _remove(path)
    clear_unfinished(run_dir)
    with suppress(OSError):
        (run_dir / RESUME).rmdir()


def _set_aside(path: Path) -> Path:
    """Rename what is to be deleted, so that a kill meanwhile does not leave a half one; return its new path."""
    doomed = path.with_name(f"{path.name}.old{UNFINISHED}")
    _remove(doomed)
    return path.rename(doomed)


def _remove(path: Path) -> None:
    """Delete a folder as far as possible; of a link or a file nothing but itself."""
    if path.is_symlink() or path.is_file():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
