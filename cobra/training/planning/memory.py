"""Memory of one device in training, part by part, and a run's needs of main memory and disk."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from cobra.models.mamba.mixer import fp32_parameters
from cobra.models.quantized import quantized_bytes, quantized_layers
from cobra.models.vlms import CobraVLM
from cobra.training.lora import is_adapter
from cobra.training.planning.activations import Activations, Footprint

GIB = 2**30
_FP32 = 4
# CUDA's context, its libraries' work areas and NCCL's buffers; and the share of what is allocated and freed within a
# step that the allocator cannot use. Allowances, not counts.
_CONTEXT = 1.5 * GIB
_FRAGMENTED = 0.05
# Blocks whose whole parameters are there at one time where they are freed after use: the one that is computed, the one
# that is gathered ahead, and the buffer of that gathering. And gradients: as computed, and as they are sent.
_BLOCKS_GATHERED = 3
_GRADIENTS_SENT = 2


@dataclass(frozen=True)
class Sharding:
    """Spread of a model over several devices.

    world_size: Number of devices.
    shards: Devices that share one copy of parameters, gradients and optimiser states.
    freed: True where gathered parameters are freed after each block's forward pass.
    accumulation: Number of forward passes in one step; only after the last one are gradients sent and sharded.
    """

    world_size: int
    shards: int
    freed: bool
    accumulation: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    parameters: This device's share, trained and frozen.
    gathered: Whole parameters and gradients while they are used, where the model is spread over devices or quantised.
    gradients: Gradients of what is trained; whole between the passes of a step.
    optimizer: Adam's two moments.
    allowance: A guess at the needs of CUDA, its libraries and the allocator.
    """

    parameters: int
    gathered: int
    gradients: int
    optimizer: int
    activations: Activations
    allowance: int

    @property
    def total(self) -> int:
        """All of it at the worst moment."""
        states = self.parameters + self.gradients + self.optimizer
        return states + self.gathered + self.activations.peak + self.allowance


def count_memory(
    vlm: CobraVLM,
    sharding: Sharding,
    footprint: Footprint,
    on_cuda: bool,
    offloaded: bool = False,
    rows: int | None = None,
) -> Memory:
    """Count the memory of one device.

    Args:
        vlm: The model in its stage's dtypes, on any device.
        sharding: Its spread over devices.
        footprint: One forward and backward pass of it.
        on_cuda: Allow for CUDA.
        offloaded: Keep the optimiser's states in main memory.
        rows: Rows of a pass; None is as many as were measured.
    """
    learned = learned_bytes(vlm)
    whole = sharding.shards == 1 or sharding.accumulation > 1
    activations = footprint.activations(vlm.llm_backbone.llm.lm_head, rows or footprint.size.rows)
    gathered = _gathered(vlm, sharding, footprint.size.element) if sharding.world_size > 1 else 0
    # A quantised weight is whole while it is used, and in fp32 first where it is int8.
    weights = (layer.in_features * layer.out_features for layer in quantized_layers(vlm))
    gathered += max(weights, default=0) * (footprint.size.element + _FP32 * (vlm.quantized == "int8"))
    return Memory(
        # Every device has all quantised weights.
        parameters=_divided(_bytes(vlm), sharding.shards) + quantized_bytes(vlm),
        gathered=gathered,
        gradients=learned if whole else _divided(learned, sharding.shards),
        optimizer=0 if offloaded else _divided(2 * learned, sharding.shards),
        activations=activations,
        allowance=int(_CONTEXT + _FRAGMENTED * (activations.peak + gathered)) if on_cuda else 0,
    )


def largest_rows(
    vlm: CobraVLM,
    sharding: Sharding,
    footprint: Footprint,
    global_batch_size: int,
    limit: float,
    offloaded: bool = False,
) -> int | None:
    """Return the most rows of one forward pass that fit a GPU and divide the global batch, or None where none do.

    Args:
        vlm: The model in its stage's dtypes.
        sharding: Its spread over devices; the number of passes follows from the rows.
        footprint: One pass, at the longest rows.
        global_batch_size: Rows of one step.
        limit: Memory of a GPU in bytes.
        offloaded: Keep the optimiser's states in main memory.
    """
    share = global_batch_size // sharding.world_size
    for rows in range(share, 0, -1):
        if share % rows == 0:
            passes = replace(sharding, accumulation=share // rows)
            if count_memory(vlm, passes, footprint, True, offloaded, rows).total <= limit:
                return rows
    return None


def learned_bytes(vlm: CobraVLM) -> int:
    """Return the bytes of the parameters that get gradients; these and each of Adam's moments take as much.

    The parameters that a tower does not use, such as those of its last block, are not learned.
    """
    towers = vlm.vision_backbone.towers
    unused = sum(_trained(tower.parameters()) - _trained(tower.used_parameters()) for tower in towers)
    return _trained(vlm.parameters()) - unused


def weights_file_bytes(vlm: CobraVLM) -> int:
    """Return the size of a checkpoint's file: the modules that it must hold, the tied head once, and adapters."""
    adapters = (value for name, value in vlm.llm_backbone.named_parameters() if is_adapter(name))
    modules = sum(_bytes(getattr(vlm, key)) for key in vlm.checkpoint_modules)
    return modules + sum(value.nbytes for value in adapters)


def resume_state_bytes(vlm: CobraVLM) -> int:
    """Return the size of a state to resume from: trained weights and Adam's two moments."""
    return _trained(vlm.parameters()) + 2 * learned_bytes(vlm)


def _trained(parameters: Iterable[Tensor]) -> int:
    return sum(value.nbytes for value in parameters if value.requires_grad)


def _bytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in module.parameters())


def _divided(size: int, shards: int) -> int:
    return -(-size // shards)


def _gathered(vlm: CobraVLM, sharding: Sharding, element: int) -> int:
    """Return the bytes of whole parameters and gradients at the time of a block's backward pass.

    They are gathered, and gradients computed, in numbers of `element` bytes, but for what stays in fp32.
    """
    block, root = vlm.llm_backbone.llm.backbone.layers[0], vlm.llm_backbone.llm.lm_head
    whole, learned = _whole(block, element)
    root_whole, root_learned = _whole(root, element)
    parameters = root_whole + _BLOCKS_GATHERED * whole if sharding.freed else _whole(vlm, element)[0]
    # The root's gradient is complete, and so sent, at the very end.
    waiting = root_learned if sharding.accumulation == 1 else 0
    return parameters + _GRADIENTS_SENT * learned + waiting


def _whole(module: nn.Module, element: int) -> tuple[int, int]:
    """Return the bytes of a module's parameters as they are gathered, and those of them that are trained."""
    kept, sizes = fp32_parameters(module), [0, 0]
    for name, value in module.named_parameters():
        exact = name.replace(".base_layer.", ".") in kept
        size = value.numel() * (value.itemsize if exact else min(value.itemsize, element))
        sizes[0] += size
        sizes[1] += size * value.requires_grad
    return sizes[0], sizes[1]
