"""Triton kernels of the causal convolution with SiLU: one pass forward, one backward, and a single step.

A lane has some channels and goes through time with the last inputs in registers, so that each input is read once. What
is computed is fp32, or fp64 where the inputs are. Sums over time are made by program and added up in a fixed order, so
that gradients have the same bits every time.
"""

# Kernels grow tuples, each longer one of another type.
# mypy: disable-error-code="assignment"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cobra.models.mamba.ops.triton_launch import launch, rows_of, wide_dtype, wide_type
from cobra.models.mamba.ops.triton_scan import sigmoid
from cobra.models.mamba.ops.triton_sums import added

# Channels of a program with its warps, and time steps whose loads are issued together.
_BLOCK, _WARPS, _UNROLL = 256, 2, 4
# Channels of a program of the backward pass, which holds twice as many numbers a channel.
_BACKWARD_BLOCK = 128
# Programs that keep a large card busy; and the least steps of a program, for those before it are read twice.
_PROGRAMS, _LEAST_SPAN = 4096, 32


@triton.jit
def _weighted(
    values: tl.tuple, taps: tl.tuple, offset: tl.tensor, first: tl.constexpr, TAPS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return the sum of TAPS values from the first of them on, times the taps, plus an offset."""
    total = offset
    for tap in tl.static_range(TAPS):
        total += values[first + tap] * taps[tap]
    return total


@triton.jit
def _constants(
    weight: tl.tensor, bias: tl.tensor, channels: tl.tensor, inside: tl.tensor, TAPS: tl.constexpr, WIDE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return the taps and the bias of the channels; `bias` may be None."""
    taps = ()
    for tap in tl.static_range(TAPS):
        taps = taps + (tl.load(weight + channels * TAPS + tap, mask=inside, other=0.0).to(WIDE),)
    offset = channels.to(WIDE) * 0.0
    if bias is not None:
        offset = tl.load(bias + channels, mask=inside, other=0.0).to(WIDE)
    return taps, offset


@triton.jit
def _past(
    x: tl.tensor, window: tl.tensor, begin: tl.tensor, channels: tl.tensor, inside: tl.tensor, X_STEP: tl.constexpr,
    TAPS: tl.constexpr, WIDE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return the TAPS - 1 inputs before a step; before the first one they are the window's, or zeros."""
    values = ()
    for tap in tl.static_range(1, TAPS):
        step = begin - TAPS + tap
        value = tl.load(x + step * X_STEP + channels, mask=inside & (step >= 0), other=0.0).to(WIDE)
        if window is not None:
            older = tl.load(window + channels * TAPS + TAPS + step, mask=inside & (step < 0), other=0.0)
            value = tl.where(step < 0, older.to(WIDE), value)
        values = values + (value,)
    return values


@triton.jit
def _next(
    x: tl.tensor, base: tl.tensor, steps: tl.tensor, channels: tl.tensor, inside: tl.tensor, X_STEP: tl.constexpr,
    UNROLL: tl.constexpr, WIDE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return the values of UNROLL steps, with zeros after the last step."""
    values = ()
    for ahead in tl.static_range(UNROLL):
        step = base + ahead
        value = tl.load(x + step * X_STEP + channels, mask=inside & (step < steps), other=0.0)
        values = values + (value.to(WIDE),)
    return values


@triton.jit(do_not_specialize=["steps", "span"])
def conv_forward(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, window: tl.tensor, out: tl.tensor, steps: tl.tensor,
    span: tl.tensor, x_row: tl.tensor, WIDTH: tl.constexpr, X_STEP: tl.constexpr, TAPS: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
) -> None:  # fmt: skip
    """Convolve `span` steps of a block of channels of one row; x has X_STEP between steps and x_row between rows."""
    row = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < WIDTH
    begin = tl.program_id(1) * span
    x += row * x_row
    out += row * steps * WIDTH
    if window is not None:
        window += row * WIDTH * TAPS
    taps, offset = _constants(weight, bias, channels, inside, TAPS, WIDE)
    past = _past(x, window, begin, channels, inside, X_STEP, TAPS, WIDE)
    for base in range(begin, tl.minimum(begin + span, steps), UNROLL):
        values = past + _next(x, base, steps, channels, inside, X_STEP, UNROLL, WIDE)
        for ahead in tl.static_range(UNROLL):
            total = _weighted(values, taps, offset, ahead, TAPS)
            step = base + ahead
            tl.store(out + step * WIDTH + channels, total * sigmoid(total), mask=inside & (step < steps))
        past = values[UNROLL:]


@triton.jit(do_not_specialize=["steps", "span"])
def conv_backward(
    grad: tl.tensor, x: tl.tensor, weight: tl.tensor, bias: tl.tensor, window: tl.tensor, dx: tl.tensor,
    d_window: tl.tensor, sums: tl.tensor, steps: tl.tensor, span: tl.tensor, x_row: tl.tensor, WIDTH: tl.constexpr,
    X_STEP: tl.constexpr, TAPS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
) -> None:  # fmt: skip
    """Compute the gradients that `span` steps of a block of channels of one row get.

    An input's gradient comes from the TAPS - 1 steps after it too, whose part is computed once more. `sums`
    (row, span, TAPS + 1, width) gets those of taps and bias.
    """
    row = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < WIDTH
    begin = tl.program_id(1) * span
    stop = tl.minimum(begin + span, steps)
    x += row * x_row
    grad += row * steps * WIDTH
    dx += row * steps * WIDTH
    if window is not None:
        window += row * WIDTH * TAPS
    if d_window is not None:
        d_window += row * WIDTH * TAPS
    sums += (row * tl.num_programs(1) + tl.program_id(1)) * (TAPS + 1) * WIDTH
    taps, offset = _constants(weight, bias, channels, inside, TAPS, WIDE)
    past = _past(x, window, begin, channels, inside, X_STEP, TAPS, WIDE)
    zero = offset * 0.0
    before, totals = (), (zero,)
    for _ in tl.static_range(TAPS):
        totals = totals + (zero,)
    for _ in tl.static_range(TAPS - 1):
        before = before + (zero,)
    for base in range(begin, stop + TAPS - 1, UNROLL):
        values = past + _next(x, base, steps, channels, inside, X_STEP, UNROLL, WIDE)
        grads = before
        fresh = _next(grad, base, steps, channels, inside, WIDTH, UNROLL, WIDE)
        for ahead in tl.static_range(UNROLL):
            total = _weighted(values, taps, offset, ahead, TAPS)
            gate = sigmoid(total)
            slope = fresh[ahead] * (gate + total * gate * (1.0 - gate))
            grads = grads + (slope,)
            counted = tl.where(base + ahead < stop, slope, 0.0)
            added = ()
            for tap in tl.static_range(TAPS):
                added = added + (totals[tap] + counted * values[ahead + tap],)
            totals = added + (totals[TAPS] + counted,)
        for ahead in tl.static_range(UNROLL):
            step = base + ahead - TAPS + 1
            slope = zero
            for tap in tl.static_range(TAPS):
                slope += taps[tap] * grads[ahead + TAPS - 1 - tap]
            tl.store(dx + step * WIDTH + channels, slope, mask=inside & (step >= begin) & (step < stop))
            if d_window is not None:
                tl.store(d_window + channels * TAPS + TAPS + step, slope, mask=inside & (step < 0))
        past = values[UNROLL:]
        before = grads[UNROLL:]
    for tap in tl.static_range(TAPS + 1):
        tl.store(sums + tap * WIDTH + channels, totals[tap], mask=inside)


@triton.jit
def conv_step(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, window: tl.tensor, out: tl.tensor, x_row: tl.tensor,
    WIDTH: tl.constexpr, TAPS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Shift the window of a block of channels of one row in place, so that it ends in x, and convolve it.

    A lane reads and writes its own channel only, so that no other can have overwritten what it reads.
    """
    row = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < WIDTH
    window += row * WIDTH * TAPS
    taps, total = _constants(weight, bias, channels, inside, TAPS, WIDE)
    values = ()
    for tap in tl.static_range(1, TAPS):
        values = values + (tl.load(window + channels * TAPS + tap, mask=inside, other=0.0).to(WIDE),)
    values = values + (tl.load(x + row * x_row + channels, mask=inside, other=0.0).to(WIDE),)
    for tap in tl.static_range(TAPS):
        tl.store(window + channels * TAPS + tap, values[tap], mask=inside)
    total = _weighted(values, taps, total, 0, TAPS)
    tl.store(out + row * WIDTH + channels, total * sigmoid(total), mask=inside)


@torch.library.custom_op("cobra::causal_conv", mutates_args=())
def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor | None) -> Tensor:
    """See :func:`torch_ops.causal_conv`; x may have any strides but over the width, the rest is contiguous."""
    batch, steps, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    span = _span(batch, steps, width)
    grid = (triton.cdiv(width, _BLOCK), triton.cdiv(steps, span), batch)
    launch(
        *(conv_forward, grid, x, weight, bias, window, out, steps, span, rows_of(x)),
        **_sizes(x, weight), BLOCK=_BLOCK, UNROLL=_UNROLL, num_warps=_WARPS,
    )  # fmt: skip
    return out


@causal_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("cobra::causal_conv_backward", mutates_args=())
def causal_conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor | None, to_window: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, of taps (width, taps) and bias one after the other, and of the window if `to_window`.

    That of the window is empty otherwise.
    """
    batch, steps, width = x.shape
    dx, d_weights, d_window = _gradients(x, weight, window if to_window else None)
    span = _span(batch, steps, width)
    spans = triton.cdiv(steps, span)
    sums = x.new_empty(batch * spans, weight.shape[1] + 1, width, dtype=wide_dtype(x))
    grid = (triton.cdiv(width, _BACKWARD_BLOCK), spans, batch)
    launch(
        *(conv_backward, grid, grad.contiguous(), x, weight, bias, window, dx, d_window if to_window else None, sums),
        *(steps, span, rows_of(x)),
        **_sizes(x, weight), BLOCK=_BACKWARD_BLOCK, UNROLL=_UNROLL, num_warps=_WARPS,
    )  # fmt: skip
    return dx, added(sums, d_weights, weight.shape[1]), d_window


@causal_conv_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor | None, to_window: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(x, weight, window if to_window else None)


def _gradients(x: Tensor, weight: Tensor, window: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return memory for the gradients of x, of taps and bias, and of the window."""
    d_weights = weight.new_empty(weight.numel() + len(weight))
    # No output depends on the oldest input of a window.
    return x.new_empty(x.shape), d_weights, x.new_empty(0) if window is None else torch.zeros_like(window)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, window = ctx.saved_tensors
    to_window = window is not None and ctx.needs_input_grad[3]
    dx, d_weights, d_window = causal_conv_backward(grad, x, weight, bias, window, to_window)
    d_taps, d_bias = d_weights.split([weight.numel(), len(weight)])
    d_bias = None if bias is None else d_bias.to(bias.dtype)
    return dx, d_taps.view_as(weight), d_bias, d_window if to_window else None


causal_conv.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("cobra::causal_conv_step", mutates_args=("window",))
def causal_conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor) -> Tensor:
    """See :func:`torch_ops.causal_conv_step`."""
    batch, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    # As many channels as threads of four warps: no channel has a second thread, which might read late.
    block = 4 * (64 if torch.version.hip else 32)
    sizes = {"WIDTH": width, "TAPS": weight.shape[1], "WIDE": wide_type(x), "BLOCK": block}
    launch(
        conv_step, (triton.cdiv(width, block), batch), x, weight, bias, window, out, rows_of(x), **sizes, num_warps=4
    )
    return out


@causal_conv_step.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _sizes(x: Tensor, weight: Tensor) -> dict[str, Any]:
    width, taps = weight.shape
    return {"WIDTH": width, "X_STEP": x.stride(1), "TAPS": taps, "WIDE": wide_type(x)}


def _span(batch: int, steps: int, width: int) -> int:
    """Return the steps of one program, a multiple of those whose loads are issued together."""
    blocks = batch * triton.cdiv(width, _BLOCK)
    span = max(_LEAST_SPAN, triton.cdiv(steps * blocks, _PROGRAMS))
    return triton.cdiv(span, _UNROLL) * _UNROLL
