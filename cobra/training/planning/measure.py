"""Bytes that a module's passes keep and need, measured on the meta device, where tensors have sizes and no numbers.

Everything that PyTorch computes is run as it is. Kernels are opaque, and stand-ins save what they save for the backward
pass: attention, and on CUDA the norm and the Triton kernels of convolution and scan, which keep their inputs. So a plan
needs no Triton.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from cobra.models.mamba.ops import torch_ops, use_op

# Positions between two states that the backward pass of the scan's kernel holds.
_KERNEL_CHUNK = 16
# The operations of our models that autocast computes in bf16; it has no rules for the meta device.
_LOWERED = (F.linear, F.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__)


@contextmanager
def as_trained(mixed_precision: bool, kernels: bool) -> Iterator[None]:
    """Run what is inside as training does, on the meta device: products in bf16 or not, by CUDA's kernels or not."""
    # The CPU's switch of autocast, which the operations of the scan turn off for themselves.
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision, cache_enabled=False)
    with use_op(_KERNELS if kernels else torch_ops), autocast, _Rules(kernels):
        yield


class _Rules(TorchFunctionMode):
    """Autocast's rules, and stand-ins in place of opaque kernels."""

    def __init__(self, kernels: bool) -> None:
        super().__init__()
        self._fused_norm = kernels

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        attention = func is F.scaled_dot_product_attention
        if torch.is_autocast_enabled("cpu") and (attention or func in _LOWERED):
            args, kwargs = tree_map(_lower, (args, kwargs))
        if attention:
            return _Attention.apply(*args[:3])
        if self._fused_norm and func is F.rms_norm:
            return _fused_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _lower(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value


class _Attention(torch.autograd.Function):
    """Keeps queries, keys, values, the output and a normaliser for each head and token, as flash attention does."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


class _FusedNorm(torch.autograd.Function):
    """Keeps its input and one number a position."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, x.new_empty(*x.shape[:-1], 1), weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, _, weight = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _fused_norm(x: Tensor, normalized_shape: Any, weight: Tensor, eps: float) -> Tensor:
    """See :func:`torch.nn.functional.rms_norm`."""
    return _FusedNorm.apply(x, weight)


@torch.library.custom_op("cobra_plan::causal_conv", mutates_args=())
def _causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor | None) -> Tensor:
    """Keep the inputs."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("cobra_plan::selective_scan", mutates_args=())
def _scan(
    u: Tensor, dt: Tensor, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Keep the inputs."""
    return torch.empty_like(u, memory_format=torch.contiguous_format), A_log.new_empty(u.shape[0], *A_log.shape)


@_causal_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor | None) -> Tensor:
    return _causal_conv._init_fn(x, weight, bias, window)


@_scan.register_fake
def _(
    u: Tensor, dt: Tensor, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor
) -> tuple[Tensor, Tensor]:
    return _scan._init_fn(u, dt, A_log, B, C, D, z, dt_bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _conv_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else torch.empty_like(tensor) for tensor in ctx.saved_tensors)


def _scan_backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """Make the gradients, beside the states before every chunk of positions, which are computed again."""
    u, _, A_log, *_ = inputs = ctx.saved_tensors
    batch, steps, width = u.shape
    starts = A_log.new_empty(batch, -(-steps // _KERNEL_CHUNK), A_log.shape[1], width, dtype=torch.float32)
    made = tuple(torch.empty_like(tensor) for tensor in inputs)
    del starts
    return made


_causal_conv.register_autograd(_conv_backward, setup_context=_keep)
_scan.register_autograd(_scan_backward, setup_context=_keep)


def _selective_scan(
    u: Tensor,
    dt: Tensor,
    A_log: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    state: Tensor | None,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See :func:`cobra.models.mamba.ops.torch_ops.selective_scan`."""
    return _scan(u, dt, A_log, B, C, D, z, dt_bias)


_KERNELS = SimpleNamespace(
    inner=None, block_step=None, add_norm=torch_ops.add_norm, causal_conv=_causal_conv, selective_scan=_selective_scan
)


def saved_bytes(forward: Callable[[], Any], parameters: Iterable[Tensor]) -> int:
    """Return the bytes that autograd keeps of a forward pass, each storage once and parameters not at all."""
    known = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Held, so that no other storage takes its address.
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in known)


def held_bytes(forward: Callable[[], Any], parameters: Iterable[Tensor]) -> int:
    """Return the bytes that are there after a forward pass, its outputs included, and parameters not."""
    known = {parameter.untyped_storage()._cdata for parameter in parameters}
    with _Alive() as alive:
        outputs = forward()
        size = sum(size for key, size in alive.sizes.items() if key not in known)
    del outputs
    return size


def backward_bytes(module: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Return the most bytes that a module's backward pass needs beside what was kept, gradients of weights being there.

    These gradients are overwritten.
    """
    for parameter in module.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    with _Alive() as alive:
        outputs = module(*inputs)
        alive.peak = before = alive.now
        torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])
    return alive.peak - before


class _Alive(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still there: now, and the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._drop, storage._cdata)
        self.peak = max(self.peak, self.now)
        return result

    def _drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)
