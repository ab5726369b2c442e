"""Quantised linear maps (arXiv 2305.14314), through bitsandbytes: the language model in a quarter of its memory.

Their weights are dequantised each time they are used, so all operations of the mixers stay as they are; nothing is kept
of them for the backward pass.
"""

import importlib.util
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cobra.models.mamba.mixer import Mixer
from cobra.util.errors import check_known, missing_extra

KINDS = ("nf4", "int8")
# At its import, which peft does too, it tells of a package that would speed up what is not used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# Weights that share a scale, of nf4.
_BLOCK = 64
# Largest whole number of int8.
_LARGEST = 127.0


def check_quantize(kind: str | None, flag: str) -> None:
    """Raise a UserError where a kind of quantisation is unknown, or bitsandbytes is not installed; None is none."""
    if kind is None:
        return
    check_known(kind, KINDS, flag)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise missing_extra("bitsandbytes", "quantize", f"{flag} {kind}")


class QuantizedLinear(nn.Linear):
    """A frozen linear map whose weight is kept in nf4 or int8; `weight` is dequantised when it is read.

    Its tensors are no part of a state dict: they are made anew from the weights that they come from.

    Attributes:
        kind: One of :data:`KINDS`.
        dtype: Dtype of `weight`.
        numbers: The weight: two values of nf4 a byte (in * out / 2, 1) uint8, or (out, in) int8.
        scales: Largest absolute value of each 64 of nf4, or of each row of int8, fp32.
    """

    numbers: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        """Quantise a layer's weight; its bias is taken over."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.kind, self.dtype = kind, layer.weight.dtype
        self.bias = layer.bias
        numbers, scales = quantize_weight(layer.weight.detach(), kind)
        self.register_buffer("numbers", numbers, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantised weight (out, in)."""
        return self.dequantized(self.dtype)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the weight (out, in) in a dtype."""
        return dequantize_weight(self.numbers, self.scales, self.kind, (self.out_features, self.in_features), dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in the dtype of the input or of autocast."""
        # A plan computes on meta tensors as if on a CPU.
        device = "cpu" if input.is_meta else input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        out: Tensor = _Product.apply(input, self)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def extra_repr(self) -> str:
        """Return the sizes and the kind."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.kind}"


class _Product(torch.autograd.Function):
    """Product with a quantised weight, which is dequantised once more in the backward pass and not kept until then."""

    @staticmethod
    def forward(context: Any, input: Tensor, layer: QuantizedLinear) -> Tensor:
        context.layer = layer
        return F.linear(input, layer.dequantized(input.dtype))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ context.layer.dequantized(gradient.dtype), None


def quantize_weight(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return a weight (out, in) as `numbers` and `scales` of :class:`QuantizedLinear`; meta tensors get their sizes."""
    if weight.is_meta:
        if kind == "int8":
            return weight.new_empty(weight.shape, dtype=torch.int8), weight.new_empty(len(weight)).float()
        scales = weight.new_empty(-(-weight.numel() // _BLOCK)).float()
        return weight.new_empty((len(scales) * _BLOCK // 2, 1), dtype=torch.uint8), scales
    if kind == "nf4":
        blocks = F.pad(weight.flatten(), (0, -weight.numel() % _BLOCK)).view(-1, _BLOCK)
        numbers, scales = _operations().quantize_4bit(blocks, _BLOCK, "nf4", torch.uint8)
        return numbers, scales
    scales = weight.float().abs().amax(dim=1)
    steps = torch.where(scales > 0, _LARGEST / scales, 0.0).unsqueeze(1)
    return (weight.float() * steps).round().to(torch.int8), scales


def dequantize_weight(numbers: Tensor, scales: Tensor, kind: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return the weight (out, in) that :func:`quantize_weight` took, as far as its numbers hold it."""
    if numbers.is_meta:
        return torch.empty(shape, dtype=dtype, device="meta")
    if kind == "nf4":
        # A block a row: on a CPU bitsandbytes (0.50.2) begins a new block with each row, and where rows are no multiple
        # of it gives other numbers than were taken.
        blocks = _operations().dequantize_4bit(numbers, scales, _BLOCK, "nf4", (len(scales), _BLOCK), dtype)
        weight: Tensor = blocks.flatten()[: math.prod(shape)].view(shape)
        return weight
    return (numbers.float() * (scales / _LARGEST).unsqueeze(1)).to(dtype)


def _operations() -> Any:
    import bitsandbytes  # noqa: F401

    return torch.ops.bitsandbytes


def quantize(module: nn.Module, kind: str) -> None:
    """Quantise the large linear maps of all mixers inside a module, in place: see `Mixer.quantized`.

    They get no gradients from then on. Norms, embedding, head, convolutions, scans and the thin maps stay as they are.
    """
    for mixer in module.modules():
        if isinstance(mixer, Mixer):
            mixer.is_quantized = True
            for name in mixer.quantized_names:
                setattr(mixer, name, QuantizedLinear(getattr(mixer, name), kind))


def quantized_layers(module: nn.Module) -> Iterator[QuantizedLinear]:
    """Yield the quantised layers of a module."""
    return (layer for layer in module.modules() if isinstance(layer, QuantizedLinear))


def quantization_of(module: nn.Module) -> str | None:
    """Return the kind of the quantised layers of a module; None where it has none."""
    return next((layer.kind for layer in quantized_layers(module)), None)


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module, quantised ones included."""
    hidden = sum(layer.in_features * layer.out_features for layer in quantized_layers(module))
    return hidden + sum(parameter.numel() for parameter in module.parameters())


def quantized_bytes(module: nn.Module) -> int:
    """Return the bytes of the quantised weights of a module."""
    return sum(layer.numbers.nbytes + layer.scales.nbytes for layer in quantized_layers(module))
