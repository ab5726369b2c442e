"""Checkpoints of a model in Cobra's layout, `{"model": {module: state dict}}`; every file is whole or absent."""

import io
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from cobra.models.checkpoint import ADAPTER
from cobra.models.run_folder import BEST, LATEST
from cobra.models.tensors import EMBEDDING, TIED_HEAD
from cobra.models.vlms import CobraVLM
from cobra.training.lora import adapter_state
from cobra.training.run_state import cause_of
from cobra.util.distributed import World
from cobra.util.errors import SharedError
from cobra.util.files import UNFINISHED, atomic_path
from cobra.util.mounts import replace

_LEFT = "left unwritten by a request to stop"


class NotSavedError(SharedError):
    """A checkpoint could not be written, on a full disk say, for a `reason` in one line; the others are whole."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"the checkpoint {path} could not be written ({reason}); the others are whole. Once there is room, run the "
            "same command again: it goes on from the last saved state"
        )
        self.reason = reason


class LeftUnwrittenError(Exception):
    """A request to stop came while a checkpoint was written; it is not there, and those before it are whole."""


def save_checkpoint(
    vlm: CobraVLM,
    run_dir: Path,
    world: World,
    step: int,
    epoch: int,
    loss: float,
    milestone: bool = True,
    best: bool = False,
    keep: int | None = None,
    is_asked: Callable[[], bool] = lambda: False,
) -> Path:
    """Write `checkpoints/step-NNNNNN-epoch-NN-loss=L.pt` and make `latest-checkpoint.pt` the same file.

    Every process takes part in gathering the shards; the main one writes.

    Args:
        vlm: The model, sharded or not.
        run_dir: Directory of the run.
        world: The processes.
        step: Optimiser steps done.
        epoch: Passes over the data begun.
        loss: Loss of the last step.
        milestone: Keep the file with the step in its name.
        best: Make `best-checkpoint.pt` the same file.
        keep: Files with a step in their name that stay, the newest; None leaves all.
        is_asked: Tells the main process, between pieces of the file, that it is asked to leave it unwritten.

    Returns:
        The path of the file with the step in its name, which without `milestone` is not there.

    Raises:
        NotSavedError: It could not be written; raised on every process, so that none waits for another.
        LeftUnwrittenError: It was asked to be left; on every process too.
    """
    path = run_dir / LATEST.parent / f"step-{step:06d}-epoch-{epoch:02d}-loss={loss:.4f}.pt"
    modules = _gather(vlm)
    reason = None
    if world.is_main:
        try:
            _write(modules, path, milestone, best, is_asked)
            _drop_old(path.parent, keep)
        # torch.save turns what the file says into a RuntimeError.
        except (OSError, RuntimeError) as error:
            reason = cause_of(error)
    [reason, *_] = world.gather(reason)
    if reason is None:
        return path
    raise LeftUnwrittenError if _LEFT in reason else NotSavedError(path, reason)


def _gather(vlm: CobraVLM) -> dict[str, dict[str, Tensor]]:
    """Return a checkpoint's modules, whole and on the CPU; on the main process alone where they are sharded."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    # Beside adapters most of the model is not gathered.
    modules: dict[str, Any] = {
        key: get_model_state_dict(getattr(vlm, key), options=options) for key in vlm.checkpoint_modules
    }
    if modules.get("llm_backbone"):
        # Gathered from shards the tied head is a copy of its own; torch.save writes one tensor once.
        modules["llm_backbone"][TIED_HEAD] = modules["llm_backbone"][EMBEDDING]
    adapter = adapter_state(vlm)
    return modules | {ADAPTER: adapter} if adapter else modules


class _LeavableFile(io.FileIO):
    """A file whose writing ends with an OSError where the program is asked to stop: a 3B model takes a minute."""

    def __init__(self, path: Path, is_asked: Callable[[], bool]) -> None:
        super().__init__(path, "wb")
        self._is_asked = is_asked

    def write(self, data: Any) -> int:
        if self._is_asked():
            raise OSError(_LEFT)
        return super().write(data)


def _write(
    modules: dict[str, dict[str, Tensor]], path: Path, milestone: bool, best: bool, is_asked: Callable[[], bool]
) -> None:
    # Through a file of Python's own, whose error tells why nothing could be written.
    with atomic_path(path) as temporary, io.BufferedWriter(_LeavableFile(temporary, is_asked)) as file:
        torch.save({"model": modules}, file)
    try:
        _point(path.with_name(LATEST.name), path)
        if best:
            _point(path.with_name(BEST.name), path)
    finally:
        if not milestone:
            path.unlink()


def _drop_old(folder: Path, keep: int | None) -> None:
    """Delete the checkpoints with a step in their name, but the newest few; the latest and the best are other names."""
    if keep is None:
        return

    def step(path: Path) -> float:
        number = path.name.split("-")[1]
        # A file without a number is none of ours, and so the last to go.
        return int(number) if number.isdecimal() else math.inf

    for old in sorted(folder.glob("step-*-epoch-*-loss=*.pt"), key=step)[:-keep]:
        with suppress(OSError):
            old.unlink()


def _point(name: Path, path: Path) -> None:
    """Make `name` the same file as `path`, without ever leaving a half one."""
    temporary = path.with_name(f".{name.name}.{os.getpid()}{UNFINISHED}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
        replace(temporary, name)
    except OSError:
        # A file system without hard links.
        with atomic_path(name) as copy:
            shutil.copyfile(path, copy)
    finally:
        temporary.unlink(missing_ok=True)
