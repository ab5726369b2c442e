"""Triton kernels beside the scan's and the convolution's, each in place of several small operations of PyTorch.

They lay out what those read and add up what their programs have written, in a fixed order, so that gradients have the
same bits every time; what is stored has the dtype that its tensor has.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cobra.models.mamba.ops.triton_launch import launch, rows_of, wide_type
from cobra.models.mamba.ops.triton_scan import CHUNK, LOG2_E, chunks_of, lanes

# Parts that are added at once, numbers of a program, and channels of one that has all of their states.
_PARTS, _NUMBERS, _CHANNELS = 32, 64, 32


@triton.jit
def _reads(
    x: tl.tensor, row: tl.tensor, begin: tl.tensor, steps: tl.tensor, x_row: tl.tensor, x_step: tl.tensor,
    STATES: tl.constexpr, CHUNK: tl.constexpr, WIDE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return a chunk of B or C (step, state), with zeros after the last step."""
    step, n = begin + tl.arange(0, CHUNK)[:, None], tl.arange(0, STATES)[None, :]
    return tl.load(x + row * x_row + step * x_step + n, mask=step < steps, other=0.0).to(WIDE)


@triton.jit(do_not_specialize=["steps", "chunks"])
def pack_pairs(
    B: tl.tensor, C: tl.tensor, by_step: tl.tensor, by_state: tl.tensor, steps: tl.tensor, chunks: tl.tensor,
    B_row: tl.tensor, C_row: tl.tensor, B_step: tl.tensor, C_step: tl.tensor, STATES: tl.constexpr,
    CHUNK: tl.constexpr, WIDE: tl.constexpr,
) -> None:  # fmt: skip
    """Write B and C of a chunk in pairs: see :func:`make_pairs`; `by_state` may be None."""
    row, chunk = tl.program_id(1).to(tl.int64), tl.program_id(0)
    ahead, n = tl.arange(0, CHUNK)[:, None], tl.arange(0, STATES)[None, :]
    start, begin = (row * chunks + chunk) * (CHUNK * STATES * 2), chunk * CHUNK
    place = by_step + start + (ahead * STATES + n) * 2
    tl.store(place, _reads(B, row, begin, steps, B_row, B_step, STATES, CHUNK, WIDE))
    tl.store(place + 1, _reads(C, row, begin, steps, C_row, C_step, STATES, CHUNK, WIDE))
    if by_state is not None:
        begin = tl.maximum(tl.minimum(begin, steps - CHUNK), 0)
        place = by_state + start + (n * CHUNK + ahead) * 2
        tl.store(place, _reads(B, row, begin, steps, B_row, B_step, STATES, CHUNK, WIDE))
        tl.store(place + 1, _reads(C, row, begin, steps, C_row, C_step, STATES, CHUNK, WIDE))


@triton.jit
def start_carry(
    A_log: tl.tensor, grad_last: tl.tensor, carry: tl.tensor, WIDTH: tl.constexpr, STATES: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Fill the carry of a block of channels of one row, see `scan_backward`; `grad_last` may be None."""
    row = tl.program_id(1).to(tl.int64)
    channels, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None], tl.arange(0, STATES)[None, :]
    inside = (channels < WIDTH) & (n >= 0)
    rates = -tl.exp2(tl.load(A_log + channels * STATES + n, mask=inside, other=0.0).to(WIDE) * LOG2_E)
    slope = rates * 0.0
    place = carry + ((row * STATES + n) * WIDTH + channels) * 4
    tl.store(place + 1, slope, mask=inside)
    if grad_last is not None:
        slope = tl.load(grad_last + (row * WIDTH + channels) * STATES + n, mask=inside, other=0.0).to(WIDE)
    tl.store(place, slope, mask=inside)
    tl.store(place + 2, rates, mask=inside)


@triton.jit(do_not_specialize=["rows", "row_parts"])
def sum_rows(
    carry: tl.tensor, d_rows: tl.tensor, d_A_log: tl.tensor, d_D: tl.tensor, d_bias: tl.tensor, rows: tl.tensor,
    row_parts: tl.tensor, A_log: tl.tensor, WIDTH: tl.constexpr, STATES: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Add up over rows what the scan's weights get, for a block of channels: see `scan_backward`."""
    first = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channels, n, one = first[:, None], tl.arange(0, STATES)[None, :], first < WIDTH
    inside = (channels < WIDTH) & (n >= 0)
    rates = -tl.exp2(tl.load(A_log + channels * STATES + n, mask=inside, other=0.0).to(WIDE) * LOG2_E)
    total, skip, offset = tl.zeros([BLOCK, STATES], WIDE), tl.zeros([BLOCK], WIDE), tl.zeros([BLOCK], WIDE)
    for index in range(0, rows):
        row = tl.cast(index, tl.int64)
        total += tl.load(carry + ((row * STATES + n) * WIDTH + channels) * 4 + 1, mask=inside, other=0.0)
    for index in range(0, row_parts):
        row = tl.cast(index, tl.int64)
        skip += tl.load(d_rows + row * WIDTH + first, mask=one, other=0.0)
        offset += tl.load(d_rows + (row_parts + row) * WIDTH + first, mask=one, other=0.0)
    tl.store(d_A_log + channels * STATES + n, total * rates, mask=inside)
    tl.store(d_D + first, skip, mask=one)
    tl.store(d_bias + first, offset, mask=one)


@triton.jit(do_not_specialize=["steps", "chunks"])
def sum_blocks(
    parts: tl.tensor, dB: tl.tensor, dC: tl.tensor, steps: tl.tensor, chunks: tl.tensor, BLOCKS: tl.constexpr,
    LANES: tl.constexpr, STATES: tl.constexpr, CHUNK: tl.constexpr, WIDE: tl.constexpr, PARTS: tl.constexpr,
) -> None:  # fmt: skip
    """Add up what the blocks of channels have for the gradients of C and B, of a chunk and a state of one row.

    `parts` are what `scan_backward` makes of `starts`.
    """
    chunk, n, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    lane, block = tl.arange(0, 2 * CHUNK), tl.arange(0, PARTS)[:, None]
    parts += ((row * chunks + chunk) * STATES + n) * (BLOCKS * LANES)
    total = tl.zeros([PARTS, 2 * CHUNK], WIDE)
    for begin in range(0, BLOCKS, PARTS):
        place = (begin + block) * LANES + lane[None, :]
        total += tl.load(parts + place, mask=begin + block < BLOCKS, other=0.0)
    sums = tl.sum(total, 0)
    step = tl.maximum(tl.minimum(chunk * CHUNK, steps - CHUNK), 0) + lane % CHUNK
    counts = (step >= chunk * CHUNK) & (step < steps)
    place = (row * steps + step) * STATES + n
    tl.store(dC + place, sums, mask=counts & (lane < CHUNK))
    tl.store(dB + place, sums, mask=counts & (lane >= CHUNK))


@triton.jit(do_not_specialize=["count"])
def sum_parts(
    parts: tl.tensor, out: tl.tensor, count: tl.tensor, SIZE: tl.constexpr, WIDTH: tl.constexpr, TURNED: tl.constexpr,
    WIDE: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Add up a block of numbers of `parts` (count, SIZE); the first TURNED rows of WIDTH sums become columns."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([PARTS, BLOCK], WIDE)
    for begin in range(0, count, PARTS):
        part = begin + tl.arange(0, PARTS)[:, None]
        inside = (part < count) & (column < SIZE)[None, :]
        total += tl.load(parts + part.to(tl.int64) * SIZE + column[None, :], mask=inside, other=0.0)
    place = tl.where(column < TURNED * WIDTH, column % WIDTH * TURNED + column // WIDTH, column)
    tl.store(out + place, tl.sum(total, 0), mask=column < SIZE)


def make_pairs(B: Tensor, C: Tensor, dtype: torch.dtype, to_backward: bool) -> tuple[Tensor, ...]:
    """Return B and C (batch, time, state) in pairs, as the scan's kernels read them.

    Both have zeros after the last step.

    Args:
        B: With a dense last dimension.
        C: As well.
        dtype: That of the pairs.
        to_backward: Make those of the backward pass too.

    Returns:
        (batch, steps to a multiple of CHUNK, state, 2); and with `to_backward` (batch, chunk, state, CHUNK, 2), whose
        last chunk is the last CHUNK steps.
    """
    batch, steps, states = B.shape
    chunks = chunks_of(steps)
    by_step = B.new_empty(batch, chunks * CHUNK, states, 2, dtype=dtype)
    by_state = B.new_empty(batch, chunks, states, CHUNK, 2, dtype=dtype) if to_backward else None
    launch(
        *(pack_pairs, (chunks, batch), B, C, by_step, by_state, steps, chunks),
        *(rows_of(B), rows_of(C), B.stride(1), C.stride(1)),
        **{"STATES": states, "CHUNK": CHUNK, "WIDE": wide_type(by_step)}, num_warps=2,
    )  # fmt: skip
    return (by_step,) if by_state is None else (by_step, by_state)


def make_carry(A_log: Tensor, grad_last: Tensor | None, batch: int, dtype: torch.dtype) -> Tensor:
    """Return what the scan's backward kernel goes on from (batch, state, width, 4).

    Args:
        A_log: Logarithms of the decay rates (width, state).
        grad_last: Gradient of the last state (batch, width, state), or None for zeros.
        batch: Number of rows.
        dtype: That of the carry.
    """
    width, states = A_log.shape
    carry = A_log.new_empty(batch, states, width, 4, dtype=dtype)
    grid = (triton.cdiv(width, _CHANNELS), batch)
    grad_last = None if grad_last is None else grad_last.contiguous()
    sizes = {"WIDTH": width, "STATES": states, "WIDE": wide_type(carry), "BLOCK": _CHANNELS}
    launch(start_carry, grid, A_log, grad_last, carry, **sizes, num_warps=4)
    return carry


def weight_gradients(
    carry: Tensor, d_rows: Tensor, A_log: Tensor, D: Tensor, dt_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of A_log, D and the bias of the step sizes from what the scan's backward kernel wrote."""
    width, states = A_log.shape
    made = torch.empty_like(A_log), torch.empty_like(D), torch.empty_like(dt_bias)
    sizes = {"WIDTH": width, "STATES": states, "WIDE": wide_type(carry), "BLOCK": _CHANNELS}
    counts = len(carry), d_rows.shape[1]
    launch(sum_rows, (triton.cdiv(width, _CHANNELS),), carry, d_rows, *made, *counts, A_log, **sizes, num_warps=4)
    return made


def read_gradients(parts: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of B and C (batch, time, state) from the sums of each block of channels."""
    batch, chunks, states, padded = parts.shape
    dB, dC = B.new_empty(B.shape), C.new_empty(C.shape)
    sizes = {"BLOCKS": padded // lanes(), "LANES": lanes(), "STATES": states, "CHUNK": CHUNK}
    sizes |= {"WIDE": wide_type(parts), "PARTS": _PARTS}
    launch(sum_blocks, (chunks, states, batch), parts, dB, dC, B.shape[1], chunks, **sizes, num_warps=4)
    return dB, dC


def added(parts: Tensor, out: Tensor, turned: int = 1) -> Tensor:
    """Add up `parts` (count, ..., width) over the first dimension into `out`, which is dense and is returned.

    The first `turned` rows of the sums (..., width) are written as (width, turned).
    """
    size = out.numel()
    sizes = {"SIZE": size, "WIDTH": parts.shape[-1], "TURNED": turned, "WIDE": wide_type(parts)}
    sizes |= {"PARTS": _PARTS, "BLOCK": _NUMBERS}
    launch(sum_parts, (triton.cdiv(size, _NUMBERS),), parts, out, len(parts), **sizes, num_warps=4)
    return out
