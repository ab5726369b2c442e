"""Warnings about a planned run: whatever would fail, or surprise whoever pays for it."""

from pathlib import Path

import torch

from cobra.models.mamba.ops import gpu_failure
from cobra.training.config import Hyperparameters, PretrainConfig, stage_prefix
from cobra.training.planning.estimates import Plan
from cobra.training.planning.memory import GIB
from cobra.training.run_directory import find_state
from cobra.util.errors import UserError
from cobra.util.numbers import counted


def find_warnings(plan: Plan, config: PretrainConfig, values: Hyperparameters, run_dir: Path) -> list[str]:
    """Return a sentence for each thing that the user should know before the run starts, by a plan without warnings."""
    start = _start(config, values, run_dir)
    return [*_rows(plan, config), *_memory(plan, config), *_disk(plan, config), *start, *_kernels(plan)]


def _rows(plan: Plan, config: PretrainConfig) -> list[str]:
    messages, rows, limit = [], plan.rows, config.model.llm_max_length
    count = len(rows.tokens)
    if rows.problem is not None:
        messages.append(f"the run would stop here: {rows.problem}")
    if rows.conclusion_cut:
        messages.append(
            f"cut at {limit:,} tokens within their last CONCLUSION: {rows.conclusion_cut:,} of {counted(count, 'row')}"
            ". --dataset.truncation drop leaves them out, a larger --model.llm_max_length keeps them whole"
        )
    elif rows.longer:
        messages.append(f"longer than {limit:,} tokens, with their end cut: {rows.longer:,} of {counted(count, 'row')}")
    if rows.left_out:
        messages.append(
            f"left out because their last CONCLUSION ends beyond {limit:,} tokens: {counted(rows.left_out, 'row')}"
        )
    if count < plan.steps.global_batch_size:
        messages.append(
            f"a step takes {counted(plan.steps.global_batch_size, 'row')} and there are {count:,}: rows are repeated "
            "to fill it"
        )
    if config.stage != "align" and rows.problem is None and rows.held_out is None:
        messages.append("there are no held-out rows, so no loss is reported on rows that are not trained on")
    return messages


def _memory(plan: Plan, config: PretrainConfig) -> list[str]:
    chosen, *others = plan.variants
    if plan.device != "cuda" or chosen.memory.total <= plan.options.gpu_memory * GIB:
        return []
    needed = f"{chosen.memory.total / GIB:.1f} GiB do not fit a GPU of {plan.options.gpu_memory:g} GiB"
    flag = f"--model.{stage_prefix(config.stage)}_per_device_batch_size"
    if chosen.largest_rows is not None:
        return [f"{needed}: use {flag} {chosen.largest_rows}; the result is the same"]
    least = next((variant for variant in others if variant.recompute == "all"), None)
    if least is not None and least.largest_rows is not None and not chosen.checkpointing:
        return [f"{needed}: use --model.enable_gradient_checkpointing true and {flag} {least.largest_rows}"]
    return [f"{needed}, and neither does a single row: use more GPUs (--plan.world_size), or --lora.rank 16"]


def _disk(plan: Plan, config: PretrainConfig) -> list[str]:
    messages = []
    if plan.disk.total > plan.disk.free:
        messages.append(
            f"checkpoints may take {plan.disk.total / 1e9:,.1f} GB and the disk of {config.run_root_dir} has "
            f"{plan.disk.free / 1e9:,.1f} GB free: use another --run_root_dir, or a smaller --keep_checkpoints"
        )
    if config.save_interval_steps is None and config.save_interval_minutes is None:
        messages.append("the run's state is never saved: a run that is interrupted begins anew (--save_interval_steps)")
    return messages


def _start(config: PretrainConfig, values: Hyperparameters, run_dir: Path) -> list[str]:
    messages = []
    if config.pretrained_checkpoint is None and config.model.arch_specifier.startswith("no-align"):
        messages.append(
            "no --pretrained_checkpoint: training starts from the bare backbones and a new projector, not from a model "
            "that has seen images"
        )
    if values.max_steps is not None:
        messages.append(f"max_steps {values.max_steps:,} is given, so that the {values.epochs} epochs play no part")
    try:
        if (state := find_state(config.resume, run_dir)) is not None:
            messages.append(f"the run would go on from {state}; give another --run_id to begin a new one")
    except UserError as error:
        messages.append(f"the run would stop here: {error}")
    return messages


def _kernels(plan: Plan) -> list[str]:
    """Try Mamba's kernels, where there is a GPU."""
    if plan.device != "cuda":
        return []
    if not torch.cuda.is_available():
        return ["there is no GPU here, so that the kernels of Mamba could not be tried; the plan counts on them"]
    reason = gpu_failure(torch.cuda.current_device())
    if reason is None:
        return []
    return [
        f"the Triton kernels of Mamba do not work here ({reason}): PyTorch's operations are several times slower, and "
        "keep several times the activations that are planned"
    ]
