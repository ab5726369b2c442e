"""Operations (FLOPs) of a training step, counted from the modules' sizes, and peaks of common GPUs."""

from dataclasses import dataclass
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

    forward: Operations of the forward pass.
    backward: Operations of the backward pass: as much again for the gradient of the input where one is asked for, and
        for that of the weights where they are trained.
    """

    forward: float
    backward: float

    def __add__(self, other: "Part") -> "Part":
        return Part(self.forward + other.forward, self.backward + other.backward)

    def times(self, count: float) -> "Part":
        """Return the operations for many units."""
        return Part(self.forward * count, self.backward * count)

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
    llm = vlm.llm_backbone.llm
    towers_trained = _is_trained(vlm.vision_backbone)
    blocks = [_block(block) for block in llm.backbone.layers]
    vocabulary, width = llm.lm_head.out_features, llm.lm_head.in_features
    return ModelFlops(
        towers=sum((_tower(tower) for tower in vlm.vision_backbone.towers), Part(0, 0)),
        projector=_projector(vlm.projector, vlm.vision_backbone.num_patches, towers_trained),
        matrices=sum((matrices for matrices, _ in blocks), Part(0, 0)),
        scan=sum((scan for _, scan in blocks), Part(0, 0)),
        head=_linear(width, vocabulary, llm.lm_head.weight.requires_grad, True),
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
    blocks = model.matrices + model.scan
    once = (model.towers + model.projector).total * images + blocks.total * positions + model.head.total * labels
    return once + (blocks.forward * positions if recomputed else 0.0)


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _linear(inputs: int, outputs: int, trained: bool, passed_on: bool) -> Part:
    """Return the operations of a linear layer for one vector; `passed_on` is the gradient of its input."""
    forward = 2.0 * inputs * outputs
    return Part(forward, forward * (trained + passed_on))


def _linears(module: nn.Module, passed_on: bool = True) -> Part:
    """Return the operations of all linear layers of a module, each used once for a vector."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    parts = [_linear(layer.in_features, layer.out_features, layer.weight.requires_grad, passed_on) for layer in layers]
    return sum(parts, Part(0, 0))


def _block(block: Any) -> tuple[Part, Part]:
    """Return the operations of a Mamba block for a position: those of its linear layers, and of all else."""
    forward = block.mixer.scan_flops()
    return _linears(block.mixer), Part(forward, 2 * forward)


def _tower(tower: Tower) -> Part:
    """Return the operations of a tower for an image; pixels need no gradient."""
    forward, reading_pixels = tower.flops()
    return Part(forward, (2 * forward - reading_pixels) * _is_trained(tower))


def _projector(projector: Any, patches: int, towers_trained: bool) -> Part:
    """Return the operations of a projector for an image; it pools after its linear layers, before its convolution."""
    layers = [layer for layer in projector.modules() if isinstance(layer, nn.Linear)]
    total = _linears(projector)
    if not towers_trained:
        first = layers[0]
        total = Part(total.forward, total.backward - 2.0 * first.in_features * first.out_features)
    total = total.times(patches)
    for layer in projector.modules():
        if isinstance(layer, nn.Conv2d):
            # Depthwise: a tap has a single input.
            taps = _linear(1, layer.weight.numel(), layer.weight.requires_grad, True)
            total += taps.times(projected_positions(projector, patches))
    return total
