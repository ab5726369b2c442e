"""A Triton kernel of one step of the scan, which projects the step sizes too and updates the state in place."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cobra.models.mamba.ops.triton_launch import launch, rows_of, wide_type
from cobra.models.mamba.ops.triton_scan import LOG2_E, sigmoid, softplus

# Channels of a program with its warps, and numbers of a row of the projection that are loaded together: with half of
# the warps the loop over these takes 76 registers on sm_120, and spills where they are held to 64.
_BLOCK, _WARPS, _RANK_BLOCK = 16, 4, 64
# Threads of these warps on AMD, whose warps are of 64.
_MOST_THREADS = 256
# Programs that a large card runs at once.
_PROGRAMS = 2048


@triton.jit(do_not_specialize=["batch", "span"])
def scan_step(
    u: tl.tensor, dt: tl.tensor, B: tl.tensor, C: tl.tensor, weight: tl.tensor, bias: tl.tensor, A_log: tl.tensor,
    D: tl.tensor, z: tl.tensor, state: tl.tensor, out: tl.tensor, batch: tl.tensor, span: tl.tensor, u_row: tl.tensor,
    dt_row: tl.tensor, B_row: tl.tensor, C_row: tl.tensor, z_row: tl.tensor, WIDTH: tl.constexpr, RANK: tl.constexpr,
    STATES: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, STATE_BLOCK: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Take a block of channels of `span` rows one step on.

    dt (batch, RANK) is projected by `weight`; where that is None it is (batch, width). Loads and stores of the state
    have one layout, so that each number is read and written by one thread.
    """
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < WIDTH
    index = tl.arange(0, STATE_BLOCK)
    tile = channels[:, None] * STATES + index[None, :]
    whole = inside[:, None] & (index < STATES)[None, :]
    decay = -tl.exp2(tl.load(A_log + tile, mask=whole, other=0.0).to(WIDE) * LOG2_E) * LOG2_E
    offset = tl.load(bias + channels, mask=inside, other=0.0).to(WIDE)
    skip = tl.load(D + channels, mask=inside, other=0.0).to(WIDE)
    begin = tl.program_id(1).to(tl.int64) * span
    for ahead in range(0, tl.minimum(span, batch - begin)):
        row = begin + ahead
        if weight is None:
            delta = tl.load(dt + row * dt_row + channels, mask=inside, other=0.0).to(WIDE)
        else:
            total = tl.zeros([BLOCK, RANK_BLOCK], WIDE)
            for start in range(0, RANK, RANK_BLOCK):
                rank = start + tl.arange(0, RANK_BLOCK)
                mask = inside[:, None] & (rank < RANK)[None, :]
                part = tl.load(weight + channels[:, None] * RANK + rank[None, :], mask=mask, other=0.0).to(WIDE)
                total += part * tl.load(dt + row * dt_row + rank, mask=rank < RANK, other=0.0).to(WIDE)[None, :]
            delta = tl.sum(total, 1)
        delta = softplus(delta + offset, WIDE)
        inputs = tl.load(u + row * u_row + channels, mask=inside, other=0.0).to(WIDE)
        gate = tl.load(z + row * z_row + channels, mask=inside, other=0.0).to(WIDE)
        drive = tl.load(B + row * B_row + index, mask=index < STATES, other=0.0).to(WIDE)
        read = tl.load(C + row * C_row + index, mask=index < STATES, other=0.0).to(WIDE)
        here = state + row * WIDTH * STATES + tile
        h = tl.load(here, mask=whole, other=0.0).to(WIDE)
        h = tl.exp2(delta[:, None] * decay) * h + (delta * inputs)[:, None] * drive[None, :]
        tl.store(here, h, mask=whole)
        y = tl.sum(h * read[None, :], 1) + skip * inputs
        tl.store(out + row * WIDTH + channels, y * gate * sigmoid(gate), mask=inside)


@torch.library.custom_op("cobra::selective_scan_step", mutates_args=("state",))
def selective_scan_step(
    u: Tensor, dt: Tensor, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor, state: Tensor
) -> Tensor:
    """See :func:`torch_ops.selective_scan_step`."""
    return _run(u, dt, B, C, None, dt_bias, A_log, D, z, state)


@torch.library.custom_op("cobra::projected_scan_step", mutates_args=("state",))
def projected_scan_step(
    u: Tensor, reads: Tensor, weight: Tensor, bias: Tensor, A_log: Tensor, D: Tensor, z: Tensor, state: Tensor
) -> Tensor:
    """Project the step sizes of one step and run it, in one launch.

    Args:
        u: Inputs after the convolution (batch, width).
        reads: Step sizes before their projection, B and C, one after the other (batch, rank + 2 * states).
        weight: That projection (width, rank).
        bias: Bias of the step sizes (width,).
        A_log: Logarithms of -A (width, states).
        D: Skip weights (width,).
        z: Gate (batch, width).
        state: (batch, width, states), updated in place.

    Returns:
        y (batch, width) in u's dtype.
    """
    rank, states = weight.shape[1], A_log.shape[1]
    dt, B, C = reads.split([rank, states, states], -1)
    return _run(u, dt, B, C, weight, bias, A_log, D, z, state)


@selective_scan_step.register_fake
def _(
    u: Tensor, dt: Tensor, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor, state: Tensor
) -> Tensor:
    return u.new_empty(u.shape)


@projected_scan_step.register_fake
def _(
    u: Tensor, reads: Tensor, weight: Tensor, bias: Tensor, A_log: Tensor, D: Tensor, z: Tensor, state: Tensor
) -> Tensor:
    return u.new_empty(u.shape)


def _run(
    u: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    weight: Tensor | None,
    bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    z: Tensor,
    state: Tensor,
) -> Tensor:
    """Launch the kernel with the tensors that it takes."""
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    batch, (width, states) = len(u), A_log.shape
    blocks = triton.cdiv(width, _BLOCK)
    span = max(1, triton.cdiv(batch * blocks, _PROGRAMS))
    sizes = {"WIDTH": width, "STATES": states, "WIDE": wide_type(u), "BLOCK": _BLOCK}
    sizes |= {"RANK": 0 if weight is None else weight.shape[1], "RANK_BLOCK": _RANK_BLOCK}
    # Every thread has a number of its own: were there fewer, some would read again what others have overwritten.
    sizes["STATE_BLOCK"] = max(_MOST_THREADS // _BLOCK, triton.next_power_of_2(states))
    strides = (rows_of(tensor) for tensor in (u, dt, B, C, z))
    launch(
        *(scan_step, (blocks, triton.cdiv(batch, span)), u, dt, B, C, weight, bias, A_log, D, z, state, out),
        *(batch, span, *strides),
        **sizes, num_warps=_WARPS,
    )  # fmt: skip
    return out
