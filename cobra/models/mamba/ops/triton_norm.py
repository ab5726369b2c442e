"""Triton kernels that add to the residual stream and normalise it: 12 bytes an element instead of 24.

A program has a whole row, and the backward pass goes through its rows one after the other and adds up the weight's
gradient itself; the programs' sums are added in a fixed order, so that it has the same bits every time.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cobra.models.mamba.ops.triton_launch import launch, wide_type
from cobra.models.mamba.ops.triton_sums import added

# Programs of the backward pass, four for each part of a large card; each makes a row of sums.
_PROGRAMS = 512


@triton.jit
def norm_forward(
    hidden: tl.tensor, residual: tl.tensor, weight: tl.tensor, stream: tl.tensor, out: tl.tensor, eps: tl.tensor,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
) -> None:  # fmt: skip
    """Add a row of both inputs and normalise it; `residual` may be None, and so may `stream` where it is `hidden`."""
    start = tl.program_id(0).to(tl.int64) * WIDTH
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    x = tl.load(hidden + start + columns, mask=inside, other=0.0).to(WIDE)
    if residual is not None:
        x += tl.load(residual + start + columns, mask=inside, other=0.0).to(WIDE)
    if stream is not None:
        # What is normalised is what is stored.
        kept = x.to(stream.dtype.element_ty)
        tl.store(stream + start + columns, kept, mask=inside)
        x = kept.to(WIDE)
    scale = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    y = x * scale * tl.load(weight + columns, mask=inside, other=0.0).to(WIDE)
    tl.store(out + start + columns, y, mask=inside)


@triton.jit(do_not_specialize=["rows", "span"])
def norm_backward(
    grad: tl.tensor, grad_stream: tl.tensor, stream: tl.tensor, weight: tl.tensor, d_hidden: tl.tensor,
    d_residual: tl.tensor, sums: tl.tensor, rows: tl.tensor, span: tl.tensor, eps: tl.tensor, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, WIDE: tl.constexpr,
) -> None:  # fmt: skip
    """Compute the gradients of `span` rows, and sums (program, width); `grad_stream` and `d_residual` may be None."""
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    weights = tl.load(weight + columns, mask=inside, other=0.0).to(WIDE)
    total = weights * 0.0
    begin = tl.program_id(0).to(tl.int64) * span
    for ahead in range(0, tl.minimum(span, rows - begin)):
        start = (begin + ahead) * WIDTH
        x = tl.load(stream + start + columns, mask=inside, other=0.0).to(WIDE)
        slope = tl.load(grad + start + columns, mask=inside, other=0.0).to(WIDE)
        scale = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
        x *= scale
        total += slope * x
        slope *= weights
        slope = (slope - x * (tl.sum(slope * x, 0) / WIDTH)) * scale
        if grad_stream is not None:
            slope += tl.load(grad_stream + start + columns, mask=inside, other=0.0).to(WIDE)
        tl.store(d_hidden + start + columns, slope, mask=inside)
        if d_residual is not None:
            tl.store(d_residual + start + columns, slope, mask=inside)
    tl.store(sums + tl.program_id(0) * WIDTH + columns, total, mask=inside)


def add_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See :func:`torch_ops.add_norm`."""
    normed, stream = _add_norm(
        hidden.contiguous(), None if residual is None else residual.contiguous(), weight, eps, dtype
    )
    return normed, stream if _is_new(hidden, residual, dtype) else hidden


@torch.library.custom_op("cobra::add_norm", mutates_args=())
def _add_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Do what :func:`add_norm` does; an empty tensor is the stream that `hidden` is already."""
    normed, stream = _outputs(hidden, residual, weight, dtype)
    kept = stream if _is_new(hidden, residual, dtype) else None
    rows = hidden.numel() // len(weight)
    launch(norm_forward, (rows,), hidden, residual, weight, kept, normed, eps, **_sizes(hidden, weight))
    return normed, stream


@_add_norm.register_fake
def _(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _outputs(hidden, residual, weight, dtype)


def _outputs(hidden: Tensor, residual: Tensor | None, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = hidden.shape if _is_new(hidden, residual, dtype) else torch.Size((0,))
    return hidden.new_empty(hidden.shape, dtype=weight.dtype), hidden.new_empty(shape, dtype=dtype)


def _is_new(hidden: Tensor, residual: Tensor | None, dtype: torch.dtype) -> bool:
    """Return True if the stream is no mere copy of `hidden`."""
    return residual is not None or hidden.dtype != dtype


@torch.library.custom_op("cobra::add_norm_backward", mutates_args=())
def add_norm_backward(
    grad: Tensor,
    grad_stream: Tensor | None,
    stream: Tensor,
    weight: Tensor,
    eps: float,
    first: torch.dtype,
    second: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `hidden` and `residual`, of the two given dtypes, and of the weight.

    That of `residual` is empty where both have one dtype, and so are one.
    """
    d_hidden, d_residual, d_weight = _gradients(stream, weight, first, second)
    rows = stream.numel() // len(weight)
    programs = min(_PROGRAMS, rows)
    sums = torch.empty(
        programs, len(weight), device=stream.device, dtype=torch.promote_types(stream.dtype, torch.float32)
    )
    other = None if first == second else d_residual
    carried = None if grad_stream is None else grad_stream.contiguous()
    args = (grad.contiguous(), carried, stream, weight, d_hidden, other, sums)
    launch(norm_backward, (programs,), *args, rows, triton.cdiv(rows, max(1, programs)), eps, **_sizes(stream, weight))
    return d_hidden, d_residual, added(sums, d_weight)


@add_norm_backward.register_fake
def _(
    grad: Tensor,
    grad_stream: Tensor | None,
    stream: Tensor,
    weight: Tensor,
    eps: float,
    first: torch.dtype,
    second: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(stream, weight, first, second)


def _gradients(
    stream: Tensor, weight: Tensor, first: torch.dtype, second: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    shape = torch.Size((0,)) if first == second else stream.shape
    return (
        stream.new_empty(stream.shape, dtype=first),
        stream.new_empty(shape, dtype=second),
        torch.empty_like(weight),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, residual, weight, ctx.eps, dtype = inputs
    ctx.save_for_backward(output[1] if _is_new(hidden, residual, dtype) else hidden, weight)
    ctx.dtypes = [hidden.dtype, hidden.dtype if residual is None else residual.dtype]
    ctx.has_residual, ctx.is_new = residual is not None, _is_new(hidden, residual, dtype)


def _backward(ctx: Any, grad: Tensor, grad_stream: Tensor | None) -> tuple[Tensor | None, ...]:
    stream, weight = ctx.saved_tensors
    carried = grad_stream if ctx.is_new else None
    d_hidden, d_residual, d_weight = add_norm_backward(grad, carried, stream, weight, ctx.eps, *ctx.dtypes)
    if ctx.dtypes[0] == ctx.dtypes[1]:
        d_residual = d_hidden
    return d_hidden, d_residual if ctx.has_residual else None, d_weight, None, None


_add_norm.register_autograd(_backward, setup_context=_keep)


def _sizes(x: Tensor, weight: Tensor) -> dict[str, Any]:
    width = len(weight)
    block = triton.next_power_of_2(width)
    warps = min(16, max(1, block // 512))
    return {"WIDTH": width, "BLOCK": block, "WIDE": wide_type(x), "num_warps": warps}
