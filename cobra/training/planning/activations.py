"""Bytes that a forward pass keeps for the backward pass, and that both need for a moment.

Counted from the model's sizes, operation by operation: what autograd saves of each, in the dtype that autocast gives
it. `mamba_inner_fn` of mamba-ssm saves its input, the outputs of `x_proj` and of the scan, and one state every 2,048
positions, and recomputes the rest; PyTorch's operations keep all of that in fp32.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from cobra.models.mamba import MambaConfig
from cobra.models.mamba.mamba1 import Mamba1Mixer
from cobra.models.mamba.ops.torch_ops import chunk_steps
from cobra.models.vlms import CobraVLM
from cobra.models.vlms.cobra import LOSS_CHUNK

_FP32 = 4
# Layers of the mixer whose weight is read, instead of their forward pass called.
_READ_BY_TORCH = ("dt_proj",)
_READ_BY_KERNELS = ("x_proj", "dt_proj", "out_proj")
# Positions between two states that the kernel of mamba-ssm keeps.
_KERNEL_CHUNK = 2048


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of one process, at the longest rows.

    rows: Rows, all of one length.
    image_tokens: Positions that an image takes; 0 for rows of text only.
    text_tokens: Tokens of a row.
    element: Bytes of a number in the dtype of matrix products: 2 under mixed precision, else 4.
    kernels: Computed by the kernels of mamba-ssm, else by PyTorch's operations.
    checkpointing: Each Mamba block is recomputed in the backward pass.
    """

    rows: int
    image_tokens: int
    text_tokens: int
    element: int
    kernels: bool
    checkpointing: bool

    @property
    def positions(self) -> int:
        """Positions of a row that the language model reads."""
        return self.image_tokens + self.text_tokens


@dataclass(frozen=True)
class Activations:
    """Bytes on one device.

    kept: From the forward to the backward pass, in proportion to rows and their length.
    copies: Of weights in the dtype of matrix products, from the forward to the backward pass, whatever the rows.
    loss: For the loss over the vocabulary.
    block: For the backward pass of one Mamba block, recomputed activations included; not at the time of the loss.
    """

    kept: int
    copies: int
    loss: int
    block: int

    @property
    def peak(self) -> int:
        """Largest sum of what is there at one time."""
        return self.kept + self.copies + max(self.loss, self.block)


def count_activations(vlm: CobraVLM, size: Pass) -> Activations:
    """Count the activations of a model in its stage's dtypes, on any device; `requires_grad` says what is trained."""
    llm = vlm.llm_backbone.llm
    blocks = list(llm.backbone.layers)
    one = _block_kept(blocks[0], llm.config, size) * size.rows
    copies = sum(_copies(block, size) for block in blocks)
    kept = _stream(llm, size) * size.rows
    if not size.checkpointing:
        kept += one * len(blocks)
    images = size.rows if size.image_tokens else 0
    fixed = 0
    if images:
        trained = [tower for tower in vlm.vision_backbone.towers if _is_trained(tower)]
        kept += images * (_projector_kept(vlm, size) + sum(tower.kept_bytes(size.element) for tower in trained))
        used = {id(parameter) for tower in trained for parameter in tower.used_parameters()}
        layers = [layer for tower in trained for layer in _matrices(tower) if id(layer.weight) in used]
        # Where nothing before the projector is trained, no gradient of its first layer's input is computed, for which
        # that weight would be kept.
        layers += _matrices(vlm.projector)[0 if trained else 1 :]
        fixed = sum(_copies(layer, size) for layer in layers)
    recomputed = one + _copies(blocks[0], size) if size.checkpointing else 0
    return Activations(
        kept=kept,
        copies=fixed + (0 if size.checkpointing else copies),
        loss=_loss(llm, size),
        block=recomputed + _block_work(llm.config, size),
    )


def _matrices(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """Return the layers of a module whose weight is kept with its product."""
    return [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _copies(module: nn.Module, size: Pass) -> int:
    """Return the bytes of a module's matrices in another dtype than their own; each is saved with its product.

    The sum of a frozen matrix and its adapter is a new one as well, where the mixer reads it.
    """
    read = _READ_BY_KERNELS if size.kernels else _READ_BY_TORCH
    total = 0
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            path, _, leaf = name.rpartition(".")
            summed = leaf == "base_layer" and path.rpartition(".")[2] in read
            if summed or layer.weight.element_size() != size.element:
                total += layer.weight.numel() * size.element
        # exp(A_log), once as computed and, by PyTorch's operations, once as the scan takes it.
        if isinstance(layer, Mamba1Mixer):
            total += layer.A_log.numel() * _FP32 * (1 if size.kernels else 2)
    return total


def _stream(llm: Any, size: Pass) -> int:
    """Return the bytes of a row's residual stream between blocks, its end and the final norm.

    Without checkpointing what a block reads is counted with the block: its norm keeps it.
    """
    config, final = llm.config, 2 if llm.backbone.norm_f.weight.requires_grad and not size.kernels else 1
    between = 0
    if size.checkpointing:
        embedding = llm.backbone.embedding.weight.element_size()
        # The stream begins as the embeddings: in fp32 one tensor, which the first two blocks read.
        streams = config.n_layer - (2 if embedding == _FP32 else 1)
        between = embedding + (config.n_layer - 1) * size.element + max(streams, 0) * _FP32
    return size.positions * (config.d_model * (between + final * _FP32) + _FP32)


def _block_kept(block: Any, config: MambaConfig, size: Pass) -> int:
    """Return the bytes that one block keeps of a row: the norm's input, that of `in_proj`, and the mixer's."""
    width, states, element = config.d_inner, config.d_state, size.element
    # Of linear layers, or of adapters on them; and of the convolution, D and the norm.
    matrices = _is_trained(block)
    others = block.mixer.D.requires_grad
    norm = config.d_model * (_FP32 + element * matrices) + _FP32
    projected = element * (config.rank + 2 * states)
    if size.kernels:
        chunks = -(-size.positions // _KERNEL_CHUNK)
        mixer = 3 * width * element + projected + 2 * states * element
        return size.positions * (norm + mixer) + chunks * width * 2 * states * _FP32
    half = element < _FP32
    # PyTorch's operations keep in fp32 the steps before and after their softplus, the scan's input, y, and the gate's
    # SiLU; the gate, which in fp32 is half of in_proj's output, kept whole; the convolution's SiLU, for D or x_proj;
    # and what that is of, in the dtype of the convolution's weight.
    wide = 5 + (1 if half else 2) + (others or (matrices and not half))
    convolved = _FP32 if others or not half else element
    # In the dtype of products: inputs of the convolution, of out_proj, and of x_proj.
    narrow = others + matrices * (2 if half else 1)
    mixer = width * (wide * _FP32 + convolved + narrow * element) + 2 * states * _FP32 + projected * matrices
    chunks = -(-size.positions // chunk_steps(size.rows, width, states, size.positions))
    normalised = config.d_model * _FP32 * others
    return size.positions * (norm + normalised + mixer) + chunks * width * states * _FP32


def _block_work(config: MambaConfig, size: Pass) -> int:
    """Return the bytes of the rows that the backward pass of a block holds beside what was kept.

    By the kernels: convolution, steps and gated output again, and the gradients of these, of y and of `in_proj`'s
    output (twice the width). By PyTorch's operations: gradients of the scan's input, steps, output and gate, and three
    states of each step of a chunk. By both: gradients of the stream and of the norm's two sides.
    """
    positions, width = size.rows * size.positions, config.d_inner
    stream = config.d_model * (2 * size.element + 3 * _FP32)
    if size.kernels:
        return positions * (stream + 8 * width * size.element)
    steps = chunk_steps(size.rows, width, config.d_state, size.positions)
    return positions * (stream + 4 * width * _FP32) + 3 * steps * size.rows * width * config.d_state * _FP32


def _loss(llm: Any, size: Pass) -> int:
    """Return the bytes of the loss over the vocabulary, as if every token of text were labelled.

    The chunked operation computes the gradients with the loss and keeps them to the backward pass.
    """
    weight, labels = llm.lm_head.weight, size.rows * size.text_tokens
    vocabulary, width = weight.shape
    chunk = min(labels, LOSS_CHUNK)
    matrices = (weight.element_size() != size.element) + weight.requires_grad
    scores = chunk * vocabulary * (_FP32 if size.element == _FP32 else _FP32 + size.element)
    return matrices * vocabulary * width * size.element + scores + 2 * labels * width * size.element


def _projector_kept(vlm: CobraVLM, size: Pass) -> int:
    """Return the bytes of an image: the input of every layer, linear or not."""
    patches, total, width = vlm.vision_backbone.num_patches, 0, 0
    for layer in vlm.projector.modules():
        if isinstance(layer, nn.Linear):
            total += layer.in_features * patches
            width = layer.out_features
        elif isinstance(layer, nn.GELU):
            total += width * patches
        elif isinstance(layer, nn.Conv2d):
            # Before and after pooling.
            total += layer.in_channels * (patches + size.image_tokens)
    return total * size.element
