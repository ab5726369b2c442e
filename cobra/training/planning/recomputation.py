"""Choose how much of the blocks a run recomputes in its backward pass, by the memory that a GPU has."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from cobra.models.mamba.ops import ops_for
from cobra.models.vlms import CobraVLM
from cobra.training.config import PretrainConfig, stage_hyperparameters, stage_prefix
from cobra.training.planning.activations import Pass, measure_pass
from cobra.training.planning.memory import Sharding, count_memory
from cobra.training.sharding import RESHARD, group_size
from cobra.util.distributed import World

# Operations of a forward pass that are computed again.
SHARE = {"all": 1.0, "scan": 0.03, "none": 0.0}


def recomputing(size: Pass, policy: str) -> Pass:
    """Return a pass with another policy, one of :data:`cobra.models.mamba.recompute.POLICIES`."""
    return replace(size, checkpointing=policy != "none", recompute=policy)


def chosen_policy(checkpointing: bool, fits: Mapping[str, bool]) -> str:
    """Return the policy of a run: with `checkpointing` the one that recomputes least and fits, else `none`.

    `fits` is by policy; where nothing fits, all is recomputed. Blocks that are to be recomputed never are kept.
    """
    if not checkpointing:
        return "none"
    return "scan" if fits.get("scan") else "all"


def policy_for_run(
    config: PretrainConfig, world: World, longest: tuple[int, int], build: Callable[[], CobraVLM]
) -> str:
    """Return the policy of a run on GPUs by the memory of the smallest of them; elsewhere everything is recomputed.

    Args:
        config: The run's.
        world: Its processes; all of them call this.
        longest: Positions of an image, 0 without, and tokens of the longest row.
        build: Builds the model on the meta device.
    """
    model, kernels = config.model, world.device.type == "cuda" and ops_for(world.device).__name__.endswith("triton_ops")
    if not model.enable_gradient_checkpointing or not kernels:
        return "all"
    values, prefix = stage_hyperparameters(model, config.stage), stage_prefix(config.stage)
    strategy = getattr(model, f"{prefix}_train_strategy")
    passes = values.global_batch_size // (world.size * values.per_device_batch_size)
    shards = group_size(strategy, world.size, config.sharding_group_size)
    sharding = Sharding(world.size, shards, RESHARD[strategy], passes)
    element = 2 if model.enable_mixed_precision_training else 4
    size = Pass(values.per_device_batch_size, *longest, element, True, True, gathered=world.size > 1)
    total = torch.tensor(float(torch.cuda.get_device_properties(world.device).total_memory), device=world.device)
    memory = -world.max(-total).item()
    return choose_policy(build(), sharding, size, memory, config.offload_optimizer)


def choose_policy(vlm: CobraVLM, sharding: Sharding, size: Pass, memory: float, offloaded: bool) -> str:
    """Return the policy for a run on GPUs.

    Args:
        vlm: The model on the meta device, see :func:`cobra.training.planning.meta_model.build_meta_model`.
        sharding: Its spread over devices.
        size: A pass over the longest rows.
        memory: Bytes of a GPU.
        offloaded: Keep the optimiser's states in main memory.
    """
    if not size.checkpointing or not size.kernels:
        return chosen_policy(size.checkpointing, {})
    footprint = measure_pass(vlm, recomputing(size, "scan"))
    needed = count_memory(vlm, sharding, footprint, True, offloaded).total
    return chosen_policy(True, {"scan": needed <= memory})
