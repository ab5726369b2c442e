"""Shards of a model over processes, by FSDP2 (torch.distributed.fsdp.fully_shard)."""

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from cobra.models.mamba.mixer import fp32_parameters
from cobra.models.vlms import CobraVLM
from cobra.util.distributed import World
from cobra.util.errors import UserError, check_known

# Strategy -> True where parameters are freed again after the forward pass of their unit.
RESHARD = {"fsdp-shard-grad-op": False, "fsdp-full-shard": True, "ddp": False}


def check_strategy(strategy: str) -> None:
    """Raise a UserError where the train strategy is unknown."""
    check_known(strategy, RESHARD, "the train strategy")


def group_size(strategy: str, world_size: int, requested: int | None) -> int:
    """Return the number of processes that share one copy of the model.

    Args:
        strategy: A key of :data:`RESHARD`.
        world_size: Number of all processes.
        requested: The value of `--sharding_group_size`; None is all of them, or one with `ddp`.

    Raises:
        UserError: The processes do not divide into groups of that size.
    """
    if strategy == "ddp":
        if requested not in (None, 1):
            raise UserError(f"--sharding_group_size {requested} contradicts the train strategy ddp: it shards nothing")
        return 1
    size = world_size if requested is None else requested
    if size < 1 or world_size % size:
        fitting = ", ".join(str(number) for number in range(1, world_size + 1) if world_size % number == 0)
        groups = f"{world_size} processes into equal groups"
        raise UserError(f"--sharding_group_size {size} does not divide {groups}: use one of {fitting}")
    return size


def shard(
    vlm: CobraVLM,
    strategy: str,
    world: World,
    reduce_dtype: torch.dtype | None,
    sharding_group_size: int | None = None,
    param_dtype: torch.dtype | None = None,
) -> None:
    """Shard a model in place; a single process keeps its whole model.

    Units are each vision tower, the projector, each Mamba block, and the root with the embedding and the tied head.
    The shards, which the optimiser changes, keep their dtype whatever that on the wire is. With a `param_dtype` a block
    is two units: what must stay in fp32, such as Mamba-1's A_log, D and step biases, is gathered apart.

    Args:
        vlm: The model on the device of this process, with the frozen modules already frozen.
        strategy: `fsdp-shard-grad-op` (ZeRO-2), `fsdp-full-shard` (ZeRO-3), or `ddp`: a whole copy on each process.
        world: The processes.
        reduce_dtype: Dtype in which gradients are averaged; None is the parameters' own.
        sharding_group_size: Size of a group, see :func:`group_size`. Groups hold copies of each other, so that the
            many messages of sharding stay within a group, a machine say, and only gradients cross the slower links
            (HSDP).
        param_dtype: Dtype in which parameters are gathered and computed with; None is their own.
    """
    check_strategy(strategy)
    size = group_size(strategy, world.size, sharding_group_size)
    if world.size == 1:
        return
    # Blocks end in a linear layer, whose output is a view; nothing changes it in place, so the warning is void.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    copies = world.size // size
    shape, names = ((size,), ("shard",)) if copies == 1 else ((copies, size), ("replicate", "shard"))
    mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=names)
    # FSDP would reduce gradients in the dtype on the wire where none is named.
    exact = MixedPrecisionPolicy(reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    policy = replace(exact, param_dtype=param_dtype, reduce_dtype=reduce_dtype or torch.float32)
    split = partial(fully_shard, mesh=mesh, reshard_after_forward=RESHARD[strategy])
    layers: Any = vlm.llm_backbone.llm.backbone.layers
    for block in layers if param_dtype is not None else ():
        others = unwidened(block.mixer)
        # The outer unit first: once the mixer is a unit, its block does not look into it any more.
        split(block, mp_policy=exact, ignored_params=others)
        split(block.mixer, mp_policy=policy, ignored_params={*block.parameters()} - others)
    blocks = layers if param_dtype is None else ()
    for unit in (*vlm.vision_backbone.towers, vlm.projector, *blocks, vlm):
        split(unit, mp_policy=exact if param_dtype is None else policy)


def unwidened(mixer: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of a mixer that may be computed with in lower precision than fp32."""
    kept = fp32_parameters(mixer)
    return {value for name, value in mixer.named_parameters() if name.replace(".base_layer.", ".") not in kept}
