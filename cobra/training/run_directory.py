"""Directory of a run: its name, its files before the first step, and the state that a later start resumes from."""

import json
import shlex
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import draccus

from cobra.conf import DatasetRegistry
from cobra.models.run_folder import LATEST
from cobra.training.config import PretrainConfig
from cobra.training.preemption import Stopped
from cobra.training.run_state import RESUME, state_step, states
from cobra.util.errors import UserError
from cobra.util.files import write_json, write_text
from cobra.util.program import command_line

# In the directory of a run that has done all its steps.
FINISHED = "finished.json"
# In the directory of a run that was stopped by request, in order, and can go on; absent after any other end.
STOPPED = "stopped.json"


def default_run_id(config: PretrainConfig) -> str:
    """Return Cobra's name for a run: the dataset in front, except for llava-v15."""
    name = f"{config.model.model_id}+stage-{config.stage}+x{config.seed}"
    dataset_id = config.dataset.dataset_id
    return name if dataset_id == DatasetRegistry.LLAVA_V15.dataset_id else f"{dataset_id}+{name}"


def name_run(config: PretrainConfig) -> tuple[str, Path]:
    """Return the run's name and its directory, whatever is in it.

    Raises:
        UserError: The name is no name of a folder, or `resume` names no run directory.
    """
    if config.resume not in ("auto", "none"):
        run_dir = Path(config.resume)
        if not (run_dir / "config.json").is_file():
            raise UserError(f"--resume {config.resume} is neither auto, none nor a run directory with a config.json")
        return run_dir.name, run_dir
    run_id = config.run_id or default_run_id(config)
    run_dir = config.run_root_dir / run_id
    if run_dir.parent != config.run_root_dir or run_dir.name in ("", ".", ".."):
        raise UserError(f"--run_id {config.run_id!r} must be the name of a folder, without slashes")
    return run_id, run_dir


def find_run(config: PretrainConfig) -> tuple[str, Path, Path | None]:
    """Return the run's name, its directory, and the saved state to go on from, if there is one.

    Raises:
        UserError: See :func:`name_run` and :func:`find_state`.
    """
    run_id, run_dir = name_run(config)
    return run_id, run_dir, find_state(config.resume, run_dir)


def find_state(resume: str, run_dir: Path) -> Path | None:
    """Return the saved state that a run goes on from, None where it begins anew.

    Raises:
        UserError: There is nothing to go on with in the directory that `resume` names, or the run is finished, or has a
            checkpoint and shall not go on.
    """
    if (run_dir / FINISHED).is_file():
        raise UserError(f"the run {run_dir} is finished: {_other_name(run_dir)}")
    saved = states(run_dir / RESUME)
    if resume != "none" and saved:
        return saved[-1]
    if resume not in ("auto", "none"):
        raise UserError(f"the run {run_dir} has saved no state to go on with: start it anew under another --run_id")
    # A run of ours that was killed before its first state may begin anew; one of Cobra's has no such folder.
    killed_early = resume == "auto" and (run_dir / RESUME).is_dir()
    if saved or ((run_dir / LATEST).exists() and not killed_early):
        raise UserError(f"the run {run_dir} has a checkpoint already and would be overwritten: {_other_name(run_dir)}")
    return None


def _other_name(run_dir: Path) -> str:
    """Return what makes way for a run whose directory is taken, with a name that is free."""
    free = next(name for number in count(2) if not (run_dir.parent / (name := f"{run_dir.name}-{number}")).exists())
    return f"name the new one (--run_id {shlex.quote(free)}), choose another --run_root_dir, or move that folder away"


def describe_start(run_dir: Path, state: Path | None) -> str:
    """Return the first line of a start: the run's directory, and the saved state that it resumes from, or lacks."""
    if state is None and (run_dir / RESUME).is_dir():
        lost = "an earlier start there ended before it had saved a state, and what it did is done again"
        return f"new run: {run_dir}; {lost} (--save_interval_minutes and --save_interval_steps save sooner)"
    if state is None:
        return f"new run: {run_dir}"
    return f"resuming the run {run_dir} after step {state_step(state):,}, from its state {state}"


def next_commands(config: PretrainConfig, run_dir: Path) -> list[str]:
    """Return what to do with a finished run, a command a line: the next stage after `align`, else talk, score, export.

    Scores are against the checkpoint that the run began from.
    """
    run, base = str(run_dir), config.pretrained_checkpoint
    if config.stage == "align":
        model, data = ("--model.type", config.model.model_id), ("--dataset.type", config.dataset.dataset_id)
        command = command_line("train", *model, *data, "--stage", "finetune", "--pretrained_checkpoint", run)
        return [f"next, train the language model too: {command}"]
    baseline = () if base is None else ("--baseline_checkpoint", base)
    return [
        f"next, talk to it: {command_line('chat', run)}",
        f"or on a page:     {command_line('serve', run)}",
        f"score it:         {command_line('benchmark', '--checkpoint', run, *baseline)}",
        f"share it:         {command_line('export', run, '--output', 'exported')}",
    ]


def describe_stop(run_dir: Path, began_from: Path | None, stopped: Stopped) -> str:
    """Leave the mark of an orderly stop where it is one, for scripts that queue the run again; return what to say.

    It is one where nothing that was done is lost, or at least something that this start, which went on from the state
    `began_from`, has done is kept: a run that cannot save anything would be queued for ever.
    """
    newest = states(run_dir / RESUME)[-1:]
    if stopped.saved or newest != ([] if began_from is None else [began_from]):
        reached = state_step(newest[0]) if newest else 0
        # Without room for it the run is not queued again, where it would meet the same disk.
        with suppress(OSError):
            write_json(run_dir / STOPPED, {"reason": stopped.reason, "step": reached, "time": time.time()})
    if stopped.step is None:
        return f"stopped by {stopped.reason} before the first step of this start: run the same command to go on"
    kept = "the state is saved in" if stopped.saved else "its state is not saved; earlier ones are in"
    where = f"{kept} {run_dir / RESUME}"
    return f"stopped by {stopped.reason} after step {stopped.step}; {where}: run the same command to go on"


def write_run_dir(config: PretrainConfig, run_id: str, run_dir: Path) -> dict[str, Any]:
    """Make the run directory with `config.yaml` and its twin `config.json`; return the configuration as JSON values."""
    values = draccus.encode(config) | {"run_id": run_id}
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "config.yaml", str(draccus.dump(values)))
    hparams = json.loads(json.dumps(values, default=str))
    write_json(run_dir / "config.json", hparams)
    return hparams
