"""Bytes that a forward pass keeps for the backward pass, and that both need for a moment.

Measured by :mod:`cobra.training.planning.measure` on a model without weights; the loss is one opaque operation and is
computed.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from cobra.models.load import cast
from cobra.models.mamba.recompute import run_block
from cobra.models.vlms import CobraVLM
from cobra.models.vlms.cobra import LOSS_CHUNK
from cobra.training.planning.measure import as_trained, backward_bytes, held_bytes, saved_bytes

_FP32 = 4
# Positions beyond which PyTorch's scan, step by step, would take seconds to measure; and those of a short pass, a
# multiple of the chunks in which the scan of a large model works.
_LONG, _SHORT = 768, 128


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of one process, at the longest rows.

    rows: Number of rows, all of one length.
    image_tokens: Positions that an image takes; 0 for rows of text only.
    text_tokens: Tokens of a row.
    element: Bytes of a number in the dtype of matrix products: 2 under mixed precision, else 4.
    kernels: True where CUDA's kernels compute, False for PyTorch's operations.
    checkpointing: True where each Mamba block is recomputed in the backward pass.
    recompute: Part of a block that is then recomputed, see :class:`cobra.models.mamba.model.MambaLM`.
    gathered: True where parameters come from several processes, in the dtype of matrix products.
    """

    rows: int
    image_tokens: int
    text_tokens: int
    element: int
    kernels: bool
    checkpointing: bool
    recompute: str = "all"
    gathered: bool = False

    @property
    def positions(self) -> int:
        """Positions of a row that the language model reads."""
        return self.image_tokens + self.text_tokens


@dataclass(frozen=True)
class Activations:
    """Bytes on one device.

    kept: Activations from the forward to the backward pass, in proportion to rows.
    copies: Copies of weights in the dtype of matrix products between these passes, whatever the rows.
    loss: The loss over the vocabulary.
    block: The backward pass of one Mamba block, recomputed activations included; not at the time of the loss.
    """

    kept: int
    copies: int
    loss: int
    block: int

    @property
    def peak(self) -> int:
        """Largest sum of what is there at one time."""
        return self.kept + self.copies + max(self.loss, self.block)


@dataclass(frozen=True)
class Footprint:
    """Measured bytes of a pass.

    size: The pass that was measured.
    kept: Bytes of a row between the passes.
    copies: Bytes of copies of weights between the passes.
    block: Bytes of a row in the backward pass of one block.
    block_copies: Bytes of weights' copies and gradients in it.
    """

    size: Pass
    kept: float
    copies: int
    block: float
    block_copies: int

    def activations(self, head: nn.Linear, rows: int) -> Activations:
        """Return the activations of a pass of so many rows, with the loss over a head's vocabulary."""
        loss = _loss(head, replace(self.size, rows=rows))
        return Activations(int(self.kept * rows), self.copies, loss, int(self.block * rows) + self.block_copies)


def measure_pass(vlm: CobraVLM, size: Pass) -> Footprint:
    """Measure a pass of a model on the meta device, in its stage's dtypes; `requires_grad` says what is trained."""
    if size.gathered and size.element < _FP32:
        vlm = copy.deepcopy(vlm)
        cast(vlm, torch.bfloat16)
    per_image, copies = measure_image(vlm, size) if size.image_tokens else (0, 0)
    with as_trained(size.element < _FP32, size.kernels):
        kept, block = _measured(_llm_saved, vlm, size), _measured(_block_needs, vlm, size)
        # A pass of a single position keeps hardly more than what is made of the weights.
        single = replace(size, rows=1, image_tokens=0, text_tokens=1)
        llm_copies, block_copies = (_measured(function, vlm, single) for function in (_llm_saved, _block_needs))
    return Footprint(
        size=size,
        kept=(kept - llm_copies) / size.rows + per_image,
        copies=llm_copies + copies,
        block=(block - block_copies) / size.rows,
        block_copies=block_copies,
    )


def measure_image(vlm: CobraVLM, size: Pass) -> tuple[int, int]:
    """Return the bytes that towers and projector keep of an image, and those of copies of their weights."""
    with as_trained(size.element < _FP32, size.kernels):
        single, double = _images_saved(vlm, 1), _images_saved(vlm, 2)
    return double - single, 2 * single - double


def _images_saved(vlm: CobraVLM, images: int) -> int:
    """Return the bytes that vision towers and projector keep of some images."""
    vision = vlm.vision_backbone
    # Towers that are not trained keep nothing; to run them all the same would take a second.
    if not any(parameter.requires_grad for parameter in vision.parameters()):
        shape, dtype = (images, vision.num_patches, vision.embed_dim), next(vlm.projector.parameters()).dtype
        patches = torch.empty(shape, device="meta", dtype=dtype)
        return saved_bytes(partial(vlm.projector, patches), vlm.parameters())
    size = vision.default_image_resolution
    pixels = {name: torch.empty(images, *size, device="meta") for name in vision.tower_names}
    given = pixels if len(pixels) > 1 else pixels[vision.tower_names[0]]
    return saved_bytes(partial(vlm.encode_images, given), vlm.parameters())


def _measured(function: Callable[[CobraVLM, int, int, str], int], vlm: CobraVLM, size: Pass) -> int:
    """Return a function's bytes of a pass; those of a long one, which loops over time, follow from two short ones."""
    policy = size.recompute if size.checkpointing else "none"
    if size.kernels or size.positions <= _LONG:
        return function(vlm, size.rows, size.positions, policy)
    short, double = (function(vlm, size.rows, length, policy) for length in (_SHORT, 2 * _SHORT))
    return short + (double - short) * (size.positions - _SHORT) // _SHORT


def _llm_saved(vlm: CobraVLM, rows: int, positions: int, policy: str) -> int:
    """Return the bytes that the language model keeps, from its embeddings to the final norm."""
    llm = copy.deepcopy(vlm.llm_backbone.llm)
    llm.gradient_checkpointing, llm.recompute = policy != "none", policy
    layers, saved = llm.backbone.layers, []
    # From the second on all blocks are alike.
    for count in (2, 3):
        llm.backbone.layers = layers[:count]
        shape, dtype = (rows, positions, llm.config.d_model), llm.lm_head.weight.dtype
        embeds = torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
        # What a policy keeps lies beside what autograd keeps.
        measure = held_bytes if policy == "scan" else saved_bytes
        saved.append(measure(partial(llm, embeds), llm.parameters()))
    return saved[0] + (len(layers) - 2) * (saved[1] - saved[0])


def _block_needs(vlm: CobraVLM, rows: int, positions: int, policy: str) -> int:
    """Return the bytes that one block's backward pass needs, with those that are recomputed for it."""
    llm = vlm.llm_backbone.llm
    block = copy.deepcopy(llm.backbone.layers[0])
    shape, dtype = (rows, positions, llm.config.d_model), torch.get_autocast_dtype("cpu")
    hidden = torch.empty(shape, device="meta", dtype=dtype if torch.is_autocast_enabled("cpu") else None)
    inputs = hidden.requires_grad_(), torch.empty(shape, device="meta", requires_grad=True)
    recomputed = saved_bytes(partial(block, *inputs), block.parameters()) if policy != "none" else 0
    if policy == "scan":
        # What is kept is there already.
        run = partial(run_block, block, policy, *inputs)
        recomputed -= min(recomputed, held_bytes(run, block.parameters()))
    return recomputed + backward_bytes(block, inputs)


def _loss(head: nn.Linear, size: Pass) -> int:
    """Return the bytes of the loss over the vocabulary, as if every token of text were labelled.

    The chunked operation computes the gradients with the loss and keeps them to the backward pass.
    """
    weight, labels = head.weight, size.rows * size.text_tokens
    vocabulary, width = weight.shape
    matrices = (weight.element_size() != size.element) + weight.requires_grad
    scores = min(labels, LOSS_CHUNK) * vocabulary * (_FP32 if size.element == _FP32 else _FP32 + size.element)
    return matrices * vocabulary * width * size.element + scores + 2 * labels * width * size.element
