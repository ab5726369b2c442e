"""Triton kernel of the selective scan's backward pass.

It goes through chunks of 16 steps from the end, a lane a channel, and has the states inside a chunk again from the one
before it. Sums over channels are made by a fixed tree and added up by program, so that gradients have the same bits
every time.
"""

# Kernels grow tuples, each longer one of another type.
# mypy: disable-error-code="assignment"

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from cobra.models.mamba.ops.triton_channels import (
    carried,
    channel,
    later,
    moved_on,
    put_back,
    quads,
    store,
    whole_steps,
)
from cobra.models.mamba.ops.triton_launch import launch, rows_of, wide_dtype
from cobra.models.mamba.ops.triton_parts import block_of, given, summed, turns
from cobra.models.mamba.ops.triton_scan import (
    CHUNK,
    LOG2_E,
    as_pairs,
    chunks_of,
    lanes,
    parts_of,
    reciprocal,
    run_forward,
    sigmoid,
    sizes,
    softplus,
)
from cobra.models.mamba.ops.triton_sums import make_carry, make_pairs, read_gradients, weight_gradients


@triton.jit
def _sum_over_lanes(values: tl.tuple, lane: tl.tensor, BLOCK: tl.constexpr, AXIS: tl.constexpr) -> tl.tensor:
    """Return the sums of 32 tensors over their lanes; lane i gets that of the tensor i.

    Given are 16, for which lanes have exchanged already: those whose bit 16 is set have the later 16 tensors. In each
    of four steps a lane gives half of its tensors to a neighbour and adds what it gets to the other half: 31 exchanges
    in all, where 32 sums would take 160. With 64 lanes both halves hold the same.
    """
    for bit in tl.static_range(4):
        upper = ((lane >> bit) & 1) != 0
        halved = ()
        for place in tl.static_range(0, 16 >> bit, 2):
            kept = tl.where(upper, values[place + 1], values[place])
            sent = tl.where(upper, values[place], values[place + 1])
            halved = halved + (kept + tl.gather(sent, lane ^ (1 << bit), AXIS),)
        values = halved
    total = values[0]
    if BLOCK == 64:
        total += tl.gather(total, lane ^ 32, AXIS)
    return total


@triton.jit
def _scales(drives: tl.tuple, opened: tl.tuple, lane: tl.tensor, CHUNK: tl.constexpr) -> tl.tuple:
    """Return what a lane multiplies by what it keeps, and by what it gives: see :func:`_through_state`."""
    kept, sent = (), ()
    for ahead in tl.static_range(CHUNK):
        kept = kept + (tl.where((lane & 16) != 0, drives[ahead], opened[ahead]),)
        sent = sent + (tl.where((lane & 16) != 0, opened[ahead], drives[ahead]),)
    return kept, sent


@triton.jit
def _opened(
    grad: tl.tensor, u: tl.tensor, dt: tl.tensor, z: tl.tensor, valid: tl.tensor, channels: tl.tensor,
    part: tl.tensor, inside: tl.tensor, early: tl.tensor, offset: tl.tensor, WIDTH: tl.constexpr,
    U_STEP: tl.constexpr, DT_STEP: tl.constexpr, Z_STEP: tl.constexpr, COUNT: tl.constexpr, PARTS: tl.constexpr,
    EVEN: tl.constexpr, WIDE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return step sizes of a part's steps of a chunk, their drives, the gradients before the gate, and those of D.

    Sizes and gradients are zeros before the step `early`, so that the state is held and nothing comes from these.
    """
    raw = whole_steps(dt, channels, inside, DT_STEP * PARTS, COUNT, EVEN, WIDE)
    inputs = whole_steps(u, channels, inside, U_STEP * PARTS, COUNT, EVEN, WIDE)
    gates = whole_steps(z, channels, inside, Z_STEP * PARTS, COUNT, EVEN, WIDE)
    grads = whole_steps(grad, channels, inside, WIDTH * PARTS, COUNT, EVEN, WIDE)
    deltas, drives, opened = (), (), ()
    for place in tl.static_range(COUNT):
        delta = softplus(raw[place] + offset, WIDE)
        if valid is not None:
            delta = tl.where(tl.load(valid + place * PARTS) != 0, delta, 0.0)
        deltas = deltas + (delta,)
    if early > 0:
        deltas, grads = later(deltas, early - part, COUNT, PARTS), later(grads, early - part, COUNT, PARTS)
    d_skip = offset * 0.0
    for place in tl.static_range(COUNT):
        drives = drives + (deltas[place] * inputs[place],)
        slope = grads[place] * gates[place] * sigmoid(gates[place])
        opened = opened + (slope,)
        d_skip += slope * inputs[place]
    return deltas, drives, opened, d_skip


@triton.jit
def _through_state(
    level: tl.tensor, slope: tl.tensor, d_rate: tl.tensor, rate: tl.tensor, reads: tl.tuple, deltas: tl.tuple,
    drives: tl.tuple, opened: tl.tuple, scales: tl.tuple, ys: tl.tuple, d_deltas: tl.tuple, d_drives: tl.tuple,
    lane: tl.tensor, CHUNK: tl.constexpr, AXIS: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Go through a chunk for one of a channel's states: forward, to have it again, and backward.

    Return the sums that were given with what this state adds to them, and what it adds to the gradients of C, or of B
    in lanes whose bit 16 is set. Lanes exchange these before they are multiplied out: a product and a sum are one
    instruction.
    """
    upper, other = (lane & 16) != 0, lane ^ 16
    decay = rate * LOG2_E
    levels, factors, sums = (level,), (), ()
    for ahead in tl.static_range(CHUNK):
        factor = tl.exp2(deltas[ahead] * decay)
        level = factor * level + drives[ahead] * reads[2 * ahead]
        levels = levels + (level,)
        factors = factors + (factor,)
        sums = sums + (ys[ahead] + level * reads[2 * ahead + 1],)
    more_drives, more_deltas, parts = (), (), ()
    for ahead in tl.static_range(CHUNK - 1, -1, -1):
        slope += opened[ahead] * reads[2 * ahead + 1]
        got = tl.gather(scales[1][ahead] * tl.where(upper, levels[ahead + 1], slope), other, AXIS)
        parts = (scales[0][ahead] * tl.where(upper, slope, levels[ahead + 1]) + got,) + parts
        more_drives = (d_drives[ahead] + slope * reads[2 * ahead],) + more_drives
        slope *= factors[ahead]
        moved = slope * levels[ahead]
        more_deltas = (d_deltas[ahead] + moved * rate,) + more_deltas
        d_rate += moved * deltas[ahead]
    return slope, d_rate, sums, more_deltas, more_drives, parts


@triton.jit
def _through_states(
    carry: tl.tensor, start: tl.tensor, pair: tl.tensor, deltas: tl.tuple, drives: tl.tuple, opened: tl.tuple,
    zero: tl.tensor, lane: tl.tensor, inside: tl.tensor, WIDTH: tl.constexpr, COUNT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Go through a chunk for COUNT states; return the sums over them of y and the gradients of sizes and drives."""
    SIZE: tl.constexpr = 2 if WIDE == tl.float64 else 1
    PADDED: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK * BLOCK
    AXIS: tl.constexpr = len(lane.shape) - 1
    scales, zeros = _scales(drives, opened, lane, CHUNK), (zero,) * CHUNK
    ys, d_deltas, d_drives = zeros, zeros, zeros
    for _n in range(0, COUNT):
        slope, d_rate, rate = carried(carry, inside, EVEN, WIDE)
        reads = quads(pair, lane, CHUNK, WIDE)
        slope, d_rate, ys, d_deltas, d_drives, sums = _through_state(
            tl.load(start), slope, d_rate, rate, reads, deltas, drives, opened, scales, ys, d_deltas, d_drives, lane,
            CHUNK, AXIS,
        )  # fmt: skip
        put_back(carry, slope, d_rate, inside, EVEN, WIDE)
        tl.store(start, _sum_over_lanes(sums, lane, BLOCK, AXIS))
        carry, start, pair = carry + WIDTH * (2 * SIZE), start + PADDED, pair + CHUNK * SIZE
    return ys, d_deltas, d_drives


@triton.jit
def _write(
    grad: tl.tensor, u: tl.tensor, dt: tl.tensor, z: tl.tensor, du: tl.tensor, d_dt: tl.tensor, dz: tl.tensor,
    channels: tl.tensor, inside: tl.tensor, skip: tl.tensor, offset: tl.tensor, deltas: tl.tuple, opened: tl.tuple,
    ys: tl.tuple, d_deltas: tl.tuple, d_drives: tl.tuple, WIDTH: tl.constexpr, U_STEP: tl.constexpr,
    DT_STEP: tl.constexpr, Z_STEP: tl.constexpr, COUNT: tl.constexpr, PARTS: tl.constexpr, EVEN: tl.constexpr,
    WIDE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Write the gradients of u, dt and z of a part's steps of a chunk; return that of the bias of the step sizes.

    Its inputs are read again, as there are no registers for them.
    """
    raw = whole_steps(dt, channels, inside, DT_STEP * PARTS, COUNT, EVEN, WIDE)
    inputs = whole_steps(u, channels, inside, U_STEP * PARTS, COUNT, EVEN, WIDE)
    gates = whole_steps(z, channels, inside, Z_STEP * PARTS, COUNT, EVEN, WIDE)
    grads = whole_steps(grad, channels, inside, WIDTH * PARTS, COUNT, EVEN, WIDE)
    d_offset = offset * 0.0
    for place in tl.static_range(COUNT):
        ahead = place * (PARTS * WIDTH)
        gate = sigmoid(gates[place])
        d_gate = grads[place] * gate * (ys[place] + skip * inputs[place])
        d_gate += d_gate * (gates[place] - gates[place] * gate)
        store(dz + ahead + channels, d_gate, inside, EVEN)
        d_input = d_drives[place] * deltas[place] + opened[place] * skip
        store(du + ahead + channels, d_input, inside, EVEN)
        slope = reciprocal(1.0 + tl.exp2(offset * -LOG2_E - raw[place] * LOG2_E))
        # Softplus is above zero: a size of zero is that of a step that does not count.
        d_raw = tl.where(deltas[place] == 0.0, 0.0, (d_deltas[place] + d_drives[place] * inputs[place]) * slope)
        store(d_dt + ahead + channels, d_raw, inside, EVEN)
        d_offset += d_raw
    return d_offset


@triton.jit(do_not_specialize=["steps", "chunks", "rows"])
def scan_backward(
    grad: tl.tensor, u: tl.tensor, dt: tl.tensor, pairs: tl.tensor, D: tl.tensor, z: tl.tensor, bias: tl.tensor,
    valid: tl.tensor, starts: tl.tensor, carry: tl.tensor, du: tl.tensor, d_dt: tl.tensor, dz: tl.tensor,
    d_rows: tl.tensor, steps: tl.tensor, chunks: tl.tensor, rows: tl.tensor, u_row: tl.tensor, dt_row: tl.tensor,
    z_row: tl.tensor, WIDTH: tl.constexpr, U_STEP: tl.constexpr, DT_STEP: tl.constexpr, Z_STEP: tl.constexpr,
    STATES: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr,
) -> None:  # fmt: skip
    """Go through the chunks of a block of channels of one row from the end.

    There are CHUNK steps at least. The last chunk begins early enough to be whole: what it writes of steps before its
    own is overwritten by the chunk that they belong to.

    `pairs` (row, chunk, state, CHUNK, 2) are B and C. `starts` (row, chunk, state, blocks of channels) are the states
    before each chunk; its first 2 * CHUNK lanes of a block become that block's part of the gradients of C, then of B.
    `carry` (row, state, width, 4) has the gradient of the last state, zeros, and the rates; in the end the first two
    are the gradients of the first state and of the rates. `d_rows` (2, row, width) gets those of D and of the bias.
    """
    EVEN: tl.constexpr = WIDTH % BLOCK == 0
    SIZE: tl.constexpr = 2 if WIDE == tl.float64 else 1
    PADDED: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK * BLOCK
    COUNT: tl.constexpr = CHUNK // PARTS
    row = tl.program_id(1).to(tl.int64)
    lane, part = block_of(BLOCK, PARTS)
    channels, first = tl.program_id(0) * BLOCK + lane, part * (STATES // PARTS)
    inside = channels < WIDTH
    carry += ((row * STATES + first) * WIDTH + channels) * (2 * SIZE)
    skip = channel(D + channels, inside, EVEN).to(WIDE)
    offset = channel(bias + channels, inside, EVEN).to(WIDE)
    d_skip, d_offset = offset * 0.0, offset * 0.0
    for back in range(0, chunks):
        chunk = (chunks - 1 - back).to(tl.int64)
        base = tl.minimum(chunk * CHUNK, steps - CHUNK)
        own = base + part
        at = (row * steps + own) * WIDTH
        inputs, raw = u + row * u_row + own * U_STEP, dt + row * dt_row + own * DT_STEP
        gates = z + row * z_row + own * Z_STEP
        deltas, drives, opened, more = _opened(
            grad + at, inputs, raw, gates, moved_on(valid, row * steps + own), channels, part, inside,
            (chunk * CHUNK - base).to(tl.int32), offset, WIDTH, U_STEP, DT_STEP, Z_STEP, COUNT, PARTS, EVEN, WIDE,
        )  # fmt: skip
        deltas, drives = given(deltas, CHUNK, BLOCK, PARTS), given(drives, CHUNK, BLOCK, PARTS)
        opened, d_skip = given(opened, CHUNK, BLOCK, PARTS), d_skip + more
        start = starts + (row * chunks + chunk) * (STATES * PADDED) + first * PADDED + channels
        pair = pairs + (row * chunks + chunk) * (STATES * CHUNK * SIZE) + first * (CHUNK * SIZE)
        ys, d_deltas, d_drives = _through_states(
            carry, start, pair, deltas, drives, opened, offset * 0.0, lane, inside, WIDTH, STATES // PARTS, WIDE, BLOCK,
            CHUNK, EVEN,
        )  # fmt: skip
        ys, d_deltas = summed(ys, CHUNK, BLOCK, PARTS), summed(d_deltas, CHUNK, BLOCK, PARTS)
        d_drives = summed(d_drives, CHUNK, BLOCK, PARTS)
        deltas, opened = turns(deltas, part, CHUNK, PARTS), turns(opened, part, CHUNK, PARTS)
        d_offset += _write(
            grad + at, inputs, raw, gates, du + at, d_dt + at, dz + at, channels, inside, skip, offset, deltas, opened,
            ys, d_deltas, d_drives, WIDTH, U_STEP, DT_STEP, Z_STEP, COUNT, PARTS, EVEN, WIDE,
        )  # fmt: skip
    here = (row * PARTS + part) * WIDTH + channels
    store(d_rows + here, d_skip, inside, EVEN)
    store(d_rows + rows * (PARTS * WIDTH) + here, d_offset, inside, EVEN)


@torch.library.custom_op("cobra::selective_scan_backward", mutates_args=())
def selective_scan_backward(
    grad: Tensor,
    grad_last: Tensor | None,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the first nine inputs of :func:`torch_ops.selective_scan`; see there.

    That of the state is empty where there is none. The states before each chunk are computed again: they would be two
    more tensors of u's size for every layer.
    """
    batch, steps, width = u.shape
    wide, states, blocks, parts = wide_dtype(u), A_log.shape[1], triton.cdiv(width, lanes()), parts_of(u)
    starts = u.new_empty(batch, chunks_of(steps), states, blocks * lanes(), dtype=wide)
    pairs, turned = make_pairs(B, C, wide, to_backward=True)
    run_forward(u, dt, A_log, pairs, D, z, dt_bias, state, valid, starts)
    missing = max(0, CHUNK - steps)
    if missing:
        # Steps behind the last one that are not valid.
        valid = u.new_ones(batch, steps, dtype=torch.uint8) if valid is None else valid
        valid = F.pad(valid, (0, missing))
        grad, u, dt, z = (F.pad(x, (0, 0, 0, missing)) for x in (grad, u, dt, z))
    carry = make_carry(A_log, grad_last, batch, wide)
    du, d_dt, dz = (torch.empty(u.shape, dtype=x.dtype, device=x.device) for x in (u, dt, z))
    d_rows, grad = u.new_empty(2, batch * parts, width, dtype=wide), grad.contiguous()
    launch(
        *(scan_backward, (blocks, batch), grad, u, dt, as_pairs(turned), D, z, dt_bias, valid, starts, as_pairs(carry)),
        *(du, d_dt, dz, d_rows, u.shape[1], starts.shape[1], batch, rows_of(u), rows_of(dt), rows_of(z)),
        **sizes(u, dt, z, A_log), PARTS=parts, num_warps=parts,
    )  # fmt: skip
    du, d_dt, dz = (x[:, :steps].clone() if missing else x for x in (du, d_dt, dz))
    d_A_log, d_skip, d_offset = weight_gradients(carry, d_rows, A_log, D, dt_bias)
    dB, dC = read_gradients(starts, B, C)
    d_state = u.new_empty(0) if state is None else torch.empty_like(state).copy_(carry[..., 0].transpose(1, 2))
    return du, d_dt, d_A_log, dB, dC, d_skip, dz, d_offset, d_state


@selective_scan_backward.register_fake
def _(
    grad: Tensor,
    grad_last: Tensor | None,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = [x.new_empty(x.shape) for x in (u, dt, A_log, B, C, D, z, dt_bias)]
    return *like, u.new_empty(0) if state is None else torch.empty_like(state)  # type: ignore[return-value]
