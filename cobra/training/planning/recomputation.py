"""Choose how much of the blocks a run recomputes in its backward pass, by the memory that a GPU has."""

from collections.abc import Callable
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


def choose_policy(checkpointing: bool, fits: Callable[[str], bool]) -> str:
    """Return the policy of a run: with `checkpointing` the one that recomputes least and fits, else `none`.

    `fits` is asked about `scan`; where that does not fit, all is recomputed, whether it fits or not. Blocks that are to
    be recomputed never are kept.
    """
    if not checkpointing:
        return "none"
    return "scan" if fits("scan") else "all"


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
    memory, vlm = _smallest_memory(world), build()

    def fits(policy: str) -> bool:
        footprint = measure_pass(vlm, recomputing(size, policy))
        return count_memory(vlm, sharding, footprint, True, config.offload_optimizer).total <= memory

    return choose_policy(True, fits)


def _smallest_memory(world: World) -> float:
    """Return the bytes of the smallest GPU of a run; all of its processes call this."""
    total = torch.tensor(float(torch.cuda.get_device_properties(world.device).total_memory), device=world.device)
    return -world.max(-total).item()
