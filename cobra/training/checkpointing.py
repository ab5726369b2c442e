"""Saving a model in Cobra's layout: `{"model": {module: state dict}}`, every file whole or absent."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from cobra.models.checkpoint import ADAPTER, BEST, EMBEDDING, LATEST, TIED_HEAD
from cobra.models.vlms import CobraVLM
from cobra.training.lora import adapter_state
from cobra.util.distributed import World
from cobra.util.files import atomic_path


def save_checkpoint(
    vlm: CobraVLM,
    run_dir: Path,
    world: World,
    step: int,
    epoch: int,
    loss: float,
    milestone: bool = True,
    best: bool = False,
) -> Path:
    """Write `checkpoints/step-NNNNNN-epoch-NN-loss=L.pt` and make `latest-checkpoint.pt` the same file.

    Every process takes part in gathering the shards; the main one writes.

    Args:
        vlm: The model, sharded or not.
        run_dir: Directory of the run.
        world: The processes.
        step: Optimiser steps done.
        epoch: Passes over the data begun.
        loss: Of the last step.
        milestone: Whether the file with the step in its name is wanted.
        best: Whether to make `best-checkpoint.pt` the same file.

    Returns:
        The path of the file with the step in its name, which without `milestone` is not there.
    """
    path = run_dir / LATEST.parent / f"step-{step:06d}-epoch-{epoch:02d}-loss={loss:.4f}.pt"
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    states: dict[str, Any] = get_model_state_dict(vlm, options=options)
    adapter = adapter_state(vlm)
    if world.is_main:
        modules: dict[str, dict[str, torch.Tensor]] = {}
        for key in vlm.checkpoint_modules:
            prefix = f"{key}."
            modules[key] = {
                name.removeprefix(prefix): value for name, value in states.items() if name.startswith(prefix)
            }
        if "llm_backbone" in modules:
            # Gathered from shards the tied head is a copy of its own; torch.save writes one tensor once.
            modules["llm_backbone"][TIED_HEAD] = modules["llm_backbone"][EMBEDDING]
        if adapter:
            modules[ADAPTER] = adapter
        with atomic_path(path) as temporary:
            torch.save({"model": modules}, temporary)
        _point(path.with_name(LATEST.name), path)
        if best:
            _point(path.with_name(BEST.name), path)
        if not milestone:
            path.unlink()
    world.barrier()
    return path


def _point(name: Path, path: Path) -> None:
    """Make `name` the same file as `path`, without ever leaving a half one."""
    temporary = path.with_name(f".{name.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(path, temporary)
        except OSError:
            # A file system without hard links.
            shutil.copyfile(path, temporary)
        temporary.replace(name)
    finally:
        temporary.unlink(missing_ok=True)
