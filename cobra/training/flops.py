"""Operations (FLOPs) of a training step, counted from the modules' sizes, and peaks of common GPUs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from cobra.models.backbones.vision import Tower
from cobra.models.vlms import CobraVLM
from cobra.util.nn_utils import projected_positions

# Dense bf16 with fp32 accumulation, in 10^12 operations a second; of several names that occur in a device's, the
# longest counts. From NVIDIA's data sheets of each card (where these state a figure with sparsity, half of it), the
# white papers of the GA102 and Ada architectures for the GeForce cards, and AMD's data sheets of the Instinct cards.
_PEAKS = {
    "A100": 312.0,
    "A800": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A10": 125.0,
    "A10G": 70.0,
    "RTX A6000": 154.8,
    "RTX 3090": 71.0,
    "RTX 4090": 165.2,
    "RTX 6000 Ada": 364.2,
    "L4": 121.0,
    "L40": 181.0,
    "L40S": 362.0,
    "H100": 989.4,
    "H100 PCIe": 756.5,
    "H100 NVL": 835.5,
    "H200": 989.4,
    "GH200": 989.4,
    "B200": 2250.0,
    "MI250X": 383.0,
    "MI300X": 1307.4,
}


def peak_tflops(device_name: str) -> float | None:
    """Return a GPU's peak in bf16, 10^12 operations a second, or None where it is not known.

    Args:
        device_name: The name that `torch.cuda.get_device_name` gives.
    """
    words = f" {device_name.replace('-', ' ')} ".lower()
    known = [name for name in _PEAKS if f" {name.lower()} " in words]
    return _PEAKS[max(known, key=len)] if known else None


@dataclass(frozen=True)
class Part:
    """Operations of one part of a model for one unit of its input: an image, a position, a label.

    backward: As much as forward for the gradient of the input where one is asked for, and for that of the weights where
        they are trained.
    """

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Operations of both passes."""
        return self.forward + self.backward


@dataclass(frozen=True)
class ModelFlops:
    """Operations of a model in training, for one unit each.

    towers: Vision towers, an image.
    projector: The projector, an image.
    matrices: Linear layers of all blocks, a position (a patch or a token).
    scan: Convolution, selective scan and gate of all blocks, a position.
    head: Scores over the vocabulary, a labelled token.
    """

    towers: Part
    projector: Part
    matrices: Part
    scan: Part
    head: Part


def count_flops(vlm: CobraVLM) -> ModelFlops:
    """Count the operations of a model, whole or sharded, on any device; `requires_grad` says what is trained."""
    vision, llm = vlm.vision_backbone, vlm.llm_backbone.llm
    mixers: list[Any] = [block.mixer for block in llm.backbone.layers]
    scan = sum(mixer.scan_flops() for mixer in mixers)
    return ModelFlops(
        towers=_sum(map(_tower, vision.towers)),
        projector=_projector(vlm.projector, vision.num_patches, _is_trained(vision)),
        matrices=_sum(map(_linears, mixers)),
        scan=Part(scan, 2 * scan),
        head=_linear(llm.lm_head),
    )


def flops_per_step(
    model: ModelFlops, images: float, positions: float, labels: float, recomputed: bool = False
) -> float:
    """Return the operations of forward and backward passes over some rows.

    Args:
        model: The result of :func:`count_flops`.
        images: Number of rows with an image.
        positions: Number of patches and tokens of all rows, as long as the language model reads them.
        labels: Number of tokens that the loss is taken on.
        recomputed: Count the second forward pass of the blocks that gradient checkpointing makes. It is no part of the
            model's own operations, which MFU is made of.
    """
    blocks = _sum((model.matrices, model.scan))
    once = (model.towers.total + model.projector.total) * images + blocks.total * positions + model.head.total * labels
    return once + (blocks.forward * positions if recomputed else 0.0)


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _sum(parts: Iterable[Part]) -> Part:
    parts = list(parts)
    return Part(sum(part.forward for part in parts), sum(part.backward for part in parts))


def _linear(layer: nn.Linear | nn.Conv2d, vectors: int = 1) -> Part:
    """Return the operations of a linear layer, or a depthwise convolution, for some vectors that need gradients."""
    forward = 2.0 * layer.weight.numel() * vectors
    return Part(forward, forward * (1 + layer.weight.requires_grad))


def _linears(module: nn.Module, vectors: int = 1) -> Part:
    """Return the operations of all linear layers of a module, each used once for a vector."""
    return _sum(_linear(layer, vectors) for layer in module.modules() if isinstance(layer, nn.Linear))


def _tower(tower: Tower) -> Part:
    """Return the operations of a tower for an image; pixels need no gradient."""
    forward, reading_pixels = tower.flops()
    return Part(forward, (2 * forward - reading_pixels) * _is_trained(tower))


def _projector(projector: nn.Module, patches: int, towers_trained: bool) -> Part:
    """Return the operations of a projector for an image; it pools after its linear layers, before its convolution."""
    pooled = projected_positions(projector, patches)
    taps = (_linear(layer, pooled) for layer in projector.modules() if isinstance(layer, nn.Conv2d))
    total = _sum((_linears(projector, patches), *taps))
    if towers_trained:
        return total
    first = next(layer for layer in projector.modules() if isinstance(layer, nn.Linear))
    return replace(total, backward=total.backward - _linear(first, patches).forward)
