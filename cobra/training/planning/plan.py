"""Plan of a run: everything that can be known of it before a GPU is paid for."""

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from cobra.models.backbones.vision.specs import vision_spec
from cobra.models.checkpoint import read_checkpoint
from cobra.models.mamba.recompute import POLICIES
from cobra.models.quantized import count_parameters, quantization_of, quantized_bytes
from cobra.models.registry import find_model
from cobra.models.run_folder import find_checkpoint
from cobra.models.vlms import CobraVLM
from cobra.training.check_run import check_run
from cobra.training.config import PretrainConfig, stage_hyperparameters, stage_prefix
from cobra.training.flops import count_flops, flops_per_step, peak_tflops
from cobra.training.planning.activations import Pass, measure_pass
from cobra.training.planning.config import PlanConfig, check_plan
from cobra.training.planning.estimates import Disk, PartSize, Plan, Variant, Work
from cobra.training.planning.memory import (
    GIB,
    Sharding,
    count_memory,
    largest_rows,
    resume_state_bytes,
    weights_file_bytes,
)
from cobra.training.planning.meta_model import build_meta_model
from cobra.training.planning.recomputation import SHARE, choose_policy, recomputing
from cobra.training.planning.render import as_json, print_plan
from cobra.training.planning.row_lengths import Epoch, plan_epoch, read_facts
from cobra.training.planning.warnings import find_warnings
from cobra.training.schedule import StepPlan, plan_steps
from cobra.training.sharding import RESHARD, group_size
from cobra.util.files import write_json

_A100_TFLOPS = 312.0


def show_plan(config: PretrainConfig, run_dir: Path, console: Console) -> Plan:
    """Plan a run, print the plan, and write it as JSON where that is asked for; see :func:`make_plan`."""
    plan, file = make_plan(config, run_dir), config.plan.json_file
    print_plan(plan, console)
    if file is not None:
        write_json(file, as_json(plan))
        console.print(f"The plan is in {file}, too.", markup=False, soft_wrap=True)
    return plan


def make_plan(config: PretrainConfig, run_dir: Path) -> Plan:
    """Plan a run.

    Neither GPU nor network is needed, no process group is made, and nothing is written but what every run keeps beside
    the rows that it has read.

    Args:
        config: The configuration of the run.
        run_dir: The run directory to be.

    Raises:
        UserError: The run itself would be refused, in the same words; or the machine to plan for makes no sense.
    """
    world_size = config.plan.world_size or int(os.environ.get("WORLD_SIZE", "1"))
    check_plan(config.plan)
    check_run(config, world_size)
    model, values = config.model, stage_hyperparameters(config.model, config.stage)
    # A GPU, unless another device was asked for.
    device = "cuda" if config.device is None else config.device.partition(":")[0]
    mixed = model.enable_mixed_precision_training and device == "cuda"
    vlm = build_meta_model(model, config.stage, config.lora, _brings_towers(config), mixed)
    if config.pretrained_checkpoint is None:
        vlm.find_align_checkpoint(config.stage, run_dir)
    tokens = vlm.image_tokens
    facts = read_facts(config.stage, config.dataset, model, vlm.vision_backbone.num_patches)
    epoch = plan_epoch(facts, values, world_size, tokens, config.seed)
    steps = plan_steps(values, world_size, epoch.batches)
    strategy = getattr(model, f"{stage_prefix(config.stage)}_train_strategy")
    shards = group_size(strategy, world_size, config.sharding_group_size)
    sharding = Sharding(world_size, shards, RESHARD[strategy], steps.accumulation_steps)
    longest = Pass(
        rows=values.per_device_batch_size,
        image_tokens=tokens if facts.has_image.any() else 0,
        text_tokens=int(facts.tokens.max()),
        element=2 if mixed else 4,
        kernels=device == "cuda",
        checkpointing=model.enable_gradient_checkpointing,
        gathered=world_size > 1,
    )
    variants = _variants(vlm, sharding, longest, config, device)
    plan = Plan(
        model_id=model.model_id,
        stage=config.stage,
        device=device,
        strategy=strategy,
        parts=_parts(vlm),
        rows=facts,
        image_tokens=tokens,
        longest=longest.positions,
        epoch=epoch,
        steps=steps,
        options=config.plan,
        variants=variants,
        start=count_parameters(vlm) * torch.float32.itemsize,
        disk=_disk(vlm, config, steps, run_dir),
        work=_work(vlm, epoch, steps, config, device, variants[0].recompute),
        warnings=[],
    )
    return replace(plan, warnings=find_warnings(plan, config, values, run_dir))


def _brings_towers(config: PretrainConfig) -> bool:
    """Return True if the start's checkpoint holds vision towers other than the backbone's own; nothing is fetched."""
    if config.pretrained_checkpoint is None:
        return False
    path = Path(config.pretrained_checkpoint)
    if not path.is_file():
        if not path.is_dir() and find_model(config.pretrained_checkpoint) is not None:
            # The released models hold a projector and a language model.
            return False
        path = find_checkpoint(config.pretrained_checkpoint).path
    own = vision_spec(config.model.vision_backbone_id).weights
    return "vision_backbone" in read_checkpoint(path, verify=False) and path != own


def _parts(vlm: CobraVLM) -> list[PartSize]:
    """Return the parts of a model; adapters are counted with the blocks."""
    towers = vlm.vision_backbone
    llm: Any = vlm.llm_backbone.llm
    parts: dict[str, nn.Module] = {f"vision tower {name}".strip(): towers.tower(name) for name in towers.tower_names}
    parts["projector"] = vlm.projector
    parts["embedding and head (tied)"] = llm.backbone.embedding
    parts[f"{len(llm.backbone.layers)} Mamba blocks"] = llm.backbone.layers
    parts["final norm"] = llm.backbone.norm_f
    return [_part(name, module) for name, module in parts.items()]


def _part(name: str, module: nn.Module) -> PartSize:
    sizes: Counter[str] = Counter()
    for value in module.parameters():
        sizes[str(value.dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")] += value.nbytes
    if (kind := quantization_of(module)) is not None:
        sizes[kind] += quantized_bytes(module)
    return PartSize(
        name=name,
        parameters=count_parameters(module),
        trained=sum(value.numel() for value in module.parameters() if value.requires_grad),
        dtype=sizes.most_common(1)[0][0],
        bytes=sizes.total(),
    )


def _variants(vlm: CobraVLM, sharding: Sharding, size: Pass, config: PretrainConfig, device: str) -> list[Variant]:
    variants, batch = {}, size.rows * sharding.accumulation * sharding.world_size
    limit, offloaded = config.plan.gpu_memory * GIB, config.offload_optimizer
    for policy in POLICIES if size.kernels else ("all", "none"):
        footprint = measure_pass(vlm, recomputing(size, policy))
        memory = count_memory(vlm, sharding, footprint, device == "cuda", offloaded)
        largest = largest_rows(vlm, sharding, footprint, batch, limit, offloaded)
        variants[policy] = Variant(policy != "none", policy, memory, largest)
    # Without the kernels nothing is known of the scan alone.
    fits = {policy for policy, variant in variants.items() if variant.memory.total <= limit}
    chosen = choose_policy(size.checkpointing, fits.__contains__)
    return [variants.pop(chosen), *variants.values()]


def _disk(vlm: CobraVLM, config: PretrainConfig, steps: StepPlan, run_dir: Path) -> Disk:
    weights, state = weights_file_bytes(vlm), resume_state_bytes(vlm)
    saved = config.save_interval_steps is not None or config.save_interval_minutes is not None
    states = config.keep_checkpoints + 1 if saved else 0
    # A new one is written before the oldest is deleted; the best or latest is beside them.
    kept = steps.milestones if config.keep_epochs is None else min(steps.milestones, config.keep_epochs + 1)
    folder = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.is_dir())
    return Disk(weights, state, weights * (kept + 1) + state * states, shutil.disk_usage(folder).free)


def _work(vlm: CobraVLM, epoch: Epoch, steps: StepPlan, config: PretrainConfig, device: str, recompute: str) -> Work:
    # Every token of text is counted as labelled: the head is a twentieth of the whole.
    flops, counts = count_flops(vlm), (epoch.images, epoch.positions, epoch.tokens)
    once, twice = (flops_per_step(flops, *counts, recomputed=again) / epoch.batches for again in (False, True))
    recomputed = (twice - once) * SHARE[recompute]
    peak, source = _peak(config.plan, device)
    hours = None
    if peak is not None:
        speed = steps.world_size * peak * 1e12 * config.plan.utilisation
        hours = (once + recomputed) * steps.total_steps / speed / 3600
    return Work(once, recomputed, peak, source, hours)


def _peak(options: PlanConfig, device: str) -> tuple[float | None, str]:
    if options.peak_tflops is not None:
        return options.peak_tflops, "--plan.peak_tflops"
    if device != "cuda":
        return None, f"not known of {device}: give --plan.peak_tflops"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if (known := peak_tflops(name)) is not None:
            return known, name
    return _A100_TFLOPS, "an A100; --plan.peak_tflops names another"
