"""Shards of a model over processes, by FSDP2 (torch.distributed.fsdp.fully_shard)."""

import warnings

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

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
    vlm: CobraVLM, strategy: str, world: World, reduce_dtype: torch.dtype | None, sharding_group_size: int | None = None
) -> None:
    """Shard a model in place; a single process keeps its whole model.

    Units are each vision tower, the projector, each Mamba block, and the root with the embedding and the tied head.
    Parameters keep their dtype on the wire: matrices are computed in bf16 by autocast, so that A_log, D and the step
    biases of the same block stay in fp32.

    Args:
        vlm: The model on the device of this process, with the frozen modules already frozen.
        strategy: `fsdp-shard-grad-op` (ZeRO-2), `fsdp-full-shard` (ZeRO-3), or `ddp`: a whole copy on each process.
        world: The processes.
        reduce_dtype: Dtype in which gradients are averaged; None is the parameters' own.
        sharding_group_size: Size of a group, see :func:`group_size`. Groups hold copies of each other, so that the
            many messages of sharding stay within a group, a machine say, and only gradients cross the slower links
            (HSDP).
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
    policy = MixedPrecisionPolicy(reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    for unit in (*vlm.vision_backbone.towers, vlm.projector, *vlm.llm_backbone.llm.backbone.layers, vlm):
        fully_shard(unit, mesh=mesh, reshard_after_forward=RESHARD[strategy], mp_policy=policy)
