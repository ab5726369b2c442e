"""Triton kernel of the selective scan.

A warp has as many channels as lanes, and a lane goes through time alone: no shared memory, no barrier, no exchange
between lanes. B and C come in pairs of fp32, so that one load of 64 bits brings both. What is computed is fp32, or fp64
where the inputs are. For the backward pass only inputs are kept; see `triton_scan_backward`.
"""

# Kernels grow tuples, each longer one of another type.
# mypy: disable-error-code="assignment"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cobra.models.mamba.ops.triton_launch import launch, rows_of, wide_dtype, wide_type
from cobra.models.mamba.ops.triton_parts import block_of, given, summed
from cobra.models.mamba.ops.triton_table import architecture_of, lookup

# Steps whose loads are issued together: with 16 the loop no longer fits the cache of instructions.
_UNROLL = 8
# Steps between two states that the backward pass begins from.
CHUNK = 16
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def reciprocal(x: tl.tensor) -> tl.tensor:
    """Return 1 / x of a positive number: the root's instruction and a product, where a division takes eight."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    """Return 1 / (1 + exp(-x))."""
    return reciprocal(1.0 + tl.exp2(-x * LOG2_E))


@triton.jit
def softplus(x: tl.tensor, WIDE: tl.constexpr) -> tl.tensor:
    """Return log(1 + exp(x)), exact for small results: 2 atanh(e / (2 + e)) is log(1 + e) without the sum 1 + e.

    In fp32 by the polynomial of the fourth degree that Chebyshev's points give, off by 4e-9 of the result.
    """
    e = tl.exp2(-tl.abs(x) * LOG2_E)
    ratio = e * reciprocal(2.0 + e)
    square = ratio * ratio
    if WIDE == tl.float64:
        series = square * 0.0 + 2.0 / 33
        for term in tl.static_range(1, 17):
            series = series * square + 2.0 / (2 * (17 - term) - 1)
    else:
        series = square * 0.28174658 + 0.27961418
        series = series * square + 0.40024854
        series = series * square + 0.66666316
        series = series * square + 2.0
    return tl.maximum(x, 0.0) + ratio * series


@triton.jit
def low(both: tl.tensor) -> tl.tensor:
    """Return the first of two fp32 numbers that were loaded as one of 64 bits."""
    return both.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def high(both: tl.tensor) -> tl.tensor:
    """Return the second one."""
    return (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _reads(
    pairs: tl.tensor, index: tl.constexpr, WIDE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return B and C of a place of the pairs."""
    if WIDE == tl.float64:
        return tl.load(pairs + 2 * index), tl.load(pairs + 2 * index + 1)
    both = tl.load(pairs + index)
    return low(both), high(both)


@triton.jit
def _steps(
    x: tl.tensor, channels: tl.tensor, inside: tl.tensor, left: tl.tensor, STEP: tl.constexpr, COUNT: tl.constexpr,
    WIDE: tl.constexpr, EVERY: tl.constexpr = 1,
) -> tl.tuple:  # fmt: skip
    """Return COUNT steps of the channels, each one EVERY steps on, with zeros from the step `left` on."""
    values = ()
    for ahead in tl.static_range(0, COUNT * EVERY, EVERY):
        value = tl.load(x + ahead * STEP + channels, mask=inside & (ahead < left), other=0.0)
        values = values + (value.to(WIDE),)
    return values


@triton.jit
def _deltas(
    dt: tl.tensor, valid: tl.tensor, offset: tl.tensor, channels: tl.tensor, inside: tl.tensor, left: tl.tensor,
    inputs: tl.tuple, STEP: tl.constexpr, COUNT: tl.constexpr, WIDE: tl.constexpr, EVERY: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return the step sizes of COUNT steps, 0 where one is not valid or from the step `left` on; then their drives."""
    raw = _steps(dt, channels, inside, left, STEP, COUNT, WIDE, EVERY)
    deltas, drives = (), ()
    for place in tl.static_range(COUNT):
        counts = place * EVERY < left
        if valid is not None:
            counts = tl.load(valid + place * EVERY, mask=counts, other=0) != 0
        delta = tl.where(counts, softplus(raw[place] + offset, WIDE), 0.0)
        deltas, drives = deltas + (delta,), drives + (delta * inputs[place],)
    return deltas + drives


@triton.jit
def _write(
    out: tl.tensor, ys: tl.tuple, inputs: tl.tuple, gates: tl.tuple, skip: tl.tensor, inside: tl.tensor,
    left: tl.tensor, STEP: tl.constexpr, COUNT: tl.constexpr, EVERY: tl.constexpr,
) -> None:  # fmt: skip
    """Add what skips the states of COUNT steps, gate the sums and store them."""
    for place in tl.static_range(COUNT):
        y = (ys[place] + skip * inputs[place]) * gates[place] * sigmoid(gates[place])
        tl.store(out + place * (EVERY * STEP), y, mask=inside & (place * EVERY < left))


@triton.jit
def _first(
    A_log: tl.tensor, state: tl.tensor, row: tl.tensor, channels: tl.tensor, first: tl.tensor, inside: tl.tensor,
    WIDTH: tl.constexpr, STATES: tl.constexpr, OWN: tl.constexpr, WIDE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return the channels' rates, to be taken as powers of 2, and their first states: zeros where `state` is None."""
    decays, h = (), ()
    for n in tl.static_range(OWN):
        rate = tl.load(A_log + channels * STATES + first + n, mask=inside, other=0.0).to(WIDE)
        decay = -tl.exp2(rate * LOG2_E) * LOG2_E
        level = channels.to(WIDE) * 0.0
        if state is not None:
            level = tl.load(state + (row * WIDTH + channels) * STATES + first + n, mask=inside, other=0.0).to(WIDE)
        decays, h = decays + (decay,), h + (level,)
    return decays, h


@triton.jit
def _keep_states(
    starts: tl.tensor, h: tl.tuple, chunk: tl.tensor, channels: tl.tensor, first: tl.tensor, WIDTH: tl.constexpr,
    STATES: tl.constexpr, OWN: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Keep the states before a chunk: whole blocks of channels, which the backward pass has room for its sums in."""
    PADDED: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK * BLOCK
    starts += chunk * (STATES * PADDED) + channels + first * PADDED
    for n in tl.static_range(OWN):
        tl.store(starts + n * PADDED, h[n])


@triton.jit(do_not_specialize=["steps", "chunks"])
def scan_forward(
    u: tl.tensor, dt: tl.tensor, A_log: tl.tensor, pairs: tl.tensor, D: tl.tensor, z: tl.tensor, bias: tl.tensor,
    state: tl.tensor, valid: tl.tensor, out: tl.tensor, last: tl.tensor, starts: tl.tensor, steps: tl.tensor,
    chunks: tl.tensor, u_row: tl.tensor, dt_row: tl.tensor, z_row: tl.tensor, WIDTH: tl.constexpr, U_STEP: tl.constexpr,
    DT_STEP: tl.constexpr, Z_STEP: tl.constexpr, STATES: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    UNROLL: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr,
) -> None:  # fmt: skip
    """Scan all steps of a block of channels of one row.

    `pairs` (row, steps to a multiple of CHUNK, state, 2) are B and C; `starts` (row, chunk, state, blocks of channels),
    which may be None, gets the states before each chunk.
    """
    row = tl.program_id(1).to(tl.int64)
    OWN: tl.constexpr = STATES // PARTS
    SIZE: tl.constexpr = 2 if WIDE == tl.float64 else 1
    COUNT: tl.constexpr = UNROLL // PARTS
    lane, part = block_of(BLOCK, PARTS)
    channels, first = tl.program_id(0) * BLOCK + lane, part * OWN
    inside = channels < WIDTH
    u += row * u_row + part * U_STEP
    dt += row * dt_row + part * DT_STEP
    z += row * z_row + part * Z_STEP
    out += row * steps * WIDTH + part * WIDTH
    pairs += row * chunks * CHUNK * STATES * SIZE + first * SIZE
    if valid is not None:
        valid += row * steps + part
    skip = tl.load(D + channels, mask=inside, other=0.0).to(WIDE)
    offset = tl.load(bias + channels, mask=inside, other=0.0).to(WIDE)
    decays, h = _first(A_log, state, row, channels, first, inside, WIDTH, STATES, OWN, WIDE)
    for base in range(0, steps, UNROLL):
        left = steps - base
        if starts is not None:
            if base % CHUNK == 0:
                _keep_states(starts, h, row * chunks + base // CHUNK, channels, first, WIDTH, STATES, OWN, BLOCK)
        inputs = _steps(u, channels, inside, left - part, U_STEP, COUNT, WIDE, PARTS)
        gates = _steps(z, channels, inside, left - part, Z_STEP, COUNT, WIDE, PARTS)
        own = _deltas(dt, valid, offset, channels, inside, left - part, inputs, DT_STEP, COUNT, WIDE, PARTS)
        both = given(own, 2 * UNROLL, BLOCK, PARTS)
        ys, after = (offset * 0.0,) * UNROLL, ()
        for n in tl.static_range(OWN):
            level, sums = h[n], ()
            for ahead in tl.static_range(UNROLL):
                drive, read = _reads(pairs, ahead * STATES + n, WIDE)
                level = tl.exp2(both[ahead] * decays[n]) * level + both[UNROLL + ahead] * drive
                sums = sums + (ys[ahead] + level * read,)
            ys = sums
            after = after + (level,)
        h = after
        sums = summed(ys, UNROLL, BLOCK, PARTS)
        _write(out + channels, sums, inputs, gates, skip, inside, left - part, WIDTH, COUNT, PARTS)
        u += UNROLL * U_STEP
        dt += UNROLL * DT_STEP
        z += UNROLL * Z_STEP
        out += UNROLL * WIDTH
        pairs += UNROLL * STATES * SIZE
        if valid is not None:
            valid += UNROLL
    for n in tl.static_range(OWN):
        tl.store(last + (row * WIDTH + channels) * STATES + first + n, h[n], mask=inside)


def lanes() -> int:
    """Return the lanes of a warp, which are the channels of a program: 64 on AMD, 32 on NVIDIA."""
    return 64 if torch.version.hip else 32


def parts_of(u: Tensor) -> int:
    """Return the number of warps that share the states of a channel."""
    batch, steps, width = u.shape
    return lookup(batch, triton.cdiv(width, lanes()), steps, architecture_of(u.device))


def chunks_of(steps: int) -> int:
    """Return the number of chunks."""
    return triton.cdiv(steps, CHUNK)


def run_forward(
    u: Tensor,
    dt: Tensor,
    A_log: Tensor,
    pairs: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    state: Tensor | None,
    valid: Tensor | None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; return y and the last state. `starts` are filled; for these and `pairs` see there."""
    batch, steps, width = u.shape
    parts = parts_of(u)
    out, last = u.new_empty(u.shape), u.new_empty(batch, *A_log.shape, dtype=wide_dtype(u))
    launch(
        *(scan_forward, (triton.cdiv(width, lanes()), batch), u, dt, A_log, as_pairs(pairs), D, z, dt_bias, state),
        *(valid, out, last, starts, steps, chunks_of(steps), rows_of(u), rows_of(dt), rows_of(z)),
        **sizes(u, dt, z, A_log), UNROLL=_UNROLL, PARTS=parts, num_warps=parts,
    )  # fmt: skip
    return out, last


def as_pairs(x: Tensor) -> Tensor:
    """Return a tensor whose last two numbers are one of 64 bits, where they are fp32."""
    return x if x.dtype == torch.float64 else x.view(torch.int64)


def sizes(u: Tensor, dt: Tensor, z: Tensor, A_log: Tensor) -> dict[str, Any]:
    """Return what is constant in the kernels of a model."""
    width, states = A_log.shape
    strides = {"U_STEP": u.stride(1), "DT_STEP": dt.stride(1), "Z_STEP": z.stride(1)}
    return {"WIDTH": width, "STATES": states, "WIDE": wide_type(u), "BLOCK": lanes(), "CHUNK": CHUNK} | strides
