"""The selective scan's loops, written for numba: sixteen channels at a time, whose states stay in the L1 cache.

A kernel is called once by every thread with the address of its arguments, one int64 each, and takes tasks until none
is left. Which thread takes a task changes nothing of its result. Addresses and strides (`_row` from one row of the
batch to the next, `_step` from one position to the next) are in bytes; numbers are fp32; a `block` is `LANES` channels.
Layouts in parentheses are those of the tensors that :mod:`cobra.models.mamba.ops.numba_ops` makes.
"""

from typing import Any

import numba
from numba import carray

from cobra.models.mamba.ops.numba_lanes import (
    BYTES,
    LANES,
    LN_2,
    LOG2_E,
    exp2,
    load,
    load_one,
    prefetch,
    sigmoid,
    softplus,
    spread,
    store,
    store_one,
    total,
)
from cobra.models.mamba.ops.numba_runtime import Kernel, next_slot, next_task


@numba.njit
def _is_padding(job: Any, row: int, step: int) -> bool:
    """Return True if a position is marked as padding in `valid` (batch, time), which is 0 where nothing is."""
    return job.valid != 0 and load_one(job.valid + (row * job.steps + step) * 4) == 0


@numba.njit
def _copy(source: int, target: int, count: int) -> None:
    for index in range(count):
        store(target + index * BYTES, load(source + index * BYTES))


@numba.njit
def _clear(target: int, count: int) -> None:
    for index in range(count):
        store(target + index * BYTES, spread(0.0))


@numba.njit
def _deltas(job: Any, row: int, block: int, begin: int, count: int, target: int) -> None:
    """Write the step sizes of a chunk; in the loop over states each step would wait for these long chains."""
    bias = load(job.bias + block * BYTES)
    dt = job.dt + row * job.dt_row + begin * job.dt_step + block * BYTES
    for k in range(count):
        store(target + k * BYTES, softplus(load(dt + k * job.dt_step) + bias))


@numba.njit
def _fetch(job: Any, row: int, block: int, begin: int, end: int) -> None:
    """Ask for a block's inputs at steps to come."""
    at = block * BYTES
    for step in range(begin, end):
        prefetch(job.u + row * job.u_row + step * job.u_step + at)
        prefetch(job.dt + row * job.dt_row + step * job.dt_step + at)
        prefetch(job.z + row * job.z_row + step * job.z_step + at)


@Kernel
def scan_forward(pointer: Any) -> None:
    """Scan: a task is a block of a row. `state` (batch, block, state, lane) is read and written.

    `starts` (batch, block, chunk, state, lane) takes the state before every `chunk` positions, or is 0.
    """
    job = carray(pointer, 1)[0]
    scratch = job.scratch + next_slot(job) * job.scratch_size
    task = next_task(job)
    while task >= 0:
        row, block = task // job.blocks, task % job.blocks
        states, chunk = job.states, job.chunk
        state = job.state + task * states * BYTES
        kept = job.starts + task * (-(-job.steps // chunk)) * states * BYTES
        for begin in range(0, job.steps, chunk):
            count = min(chunk, job.steps - begin)
            if job.starts != 0:
                _copy(state, kept + begin // chunk * states * BYTES, states)
            _fetch(job, row, block, begin + chunk, min(begin + 2 * chunk, job.steps))
            _deltas(job, row, block, begin, count, scratch)
            _forward_chunk(job, row, block, begin, count, scratch, state)
        task = next_task(job)


@numba.njit
def _forward_chunk(job: Any, row: int, block: int, begin: int, count: int, deltas: int, state: int) -> None:
    at, width, states = block * BYTES, job.blocks * BYTES, job.states
    rates, skip = job.rates + block * states * BYTES, load(job.D + at)
    out = job.out + (row * job.steps + begin) * width + at
    for k in range(count):
        step = begin + k
        if _is_padding(job, row, step):
            store(out + k * width, spread(0.0))
            continue
        delta, u = load(deltas + k * BYTES), load(job.u + row * job.u_row + step * job.u_step + at)
        drive, y = delta * u, skip * u
        B, C = job.B + row * job.B_row + step * job.B_step, job.C + row * job.C_row + step * job.C_step
        for n in range(states):
            here = n * BYTES
            h = exp2(delta * load(rates + here)) * load(state + here) + drive * spread(load_one(B + n * 4))
            store(state + here, h)
            y = y + h * spread(load_one(C + n * 4))
        store(out + k * width, y)
    z = job.z + row * job.z_row + begin * job.z_step + at
    for k in range(count):
        if not _is_padding(job, row, begin + k):
            gate = load(z + k * job.z_step)
            store(out + k * width, load(out + k * width) * (gate * sigmoid(gate)))


@Kernel
def scan_backward(pointer: Any) -> None:
    """Gradient of the scan: a task is `group` blocks of a row, taken together for the sums over channels in dB and dC.

    `carry` (batch, block, state, lane) holds the gradient of the last state and becomes that of the first. `d_rates`
    (batch, block, state, lane), `dD` and `d_bias` (batch, width) are zeros and take sums over time; `dB` and `dC`
    (group, batch, time, state) take sums over a group's channels. Of every chunk the states are computed again, from
    `starts`. A thread's part of `scratch` holds, of a chunk, step sizes, gradients of y, decays, sums for dB and for
    dC, and the states before each step and after the last.
    """
    job = carray(pointer, 1)[0]
    groups = -(-job.blocks // job.group)
    scratch = job.scratch + next_slot(job) * job.scratch_size
    task = next_task(job)
    while task >= 0:
        _backward_group(job, task // groups, task % groups, scratch)
        task = next_task(job)


@numba.njit
def _backward_group(job: Any, row: int, group: int, scratch: int) -> None:
    states, chunk, rows = job.states, job.chunk, job.tasks // (-(-job.blocks // job.group))
    size, chunks = states * BYTES, -(-job.steps // chunk)
    sums = scratch + 2 * chunk * BYTES + chunk * size
    hidden = sums + 2 * chunk * size
    for index in range(chunks - 1, -1, -1):
        begin = index * chunk
        count = min(chunk, job.steps - begin)
        _clear(sums, 2 * chunk * states)
        for block in range(group * job.group, min((group + 1) * job.group, job.blocks)):
            _copy(job.starts + ((row * job.blocks + block) * chunks + index) * size, hidden, states)
            _fetch(job, row, block, max(begin - chunk, 0), begin)
            for step in range(max(begin - chunk, 0), begin):
                prefetch(job.grad + row * job.grad_row + step * job.grad_step + block * BYTES)
            _deltas(job, row, block, begin, count, scratch)
            _states_of_chunk(job, row, block, begin, count, scratch)
            _gates_of_chunk(job, row, block, begin, count, scratch)
            _backward_chunk(job, row, block, begin, count, scratch)
        target = ((group * rows + row) * job.steps + begin) * states * 4
        for place in range(count * states):
            store_one(job.dB + target + place * 4, total(load(sums + place * BYTES)))
            store_one(job.dC + target + place * 4, total(load(sums + chunk * size + place * BYTES)))


@numba.njit
def _states_of_chunk(job: Any, row: int, block: int, begin: int, count: int, scratch: int) -> None:
    """Compute the states and decays of a chunk, and put y where the gradients of y will be."""
    states, chunk, at = job.states, job.chunk, block * BYTES
    size = states * BYTES
    rates, skip, ys = job.rates + block * size, load(job.D + at), scratch + chunk * BYTES
    decays = ys + chunk * BYTES
    hidden = decays + 3 * chunk * size
    for k in range(count):
        step, before, decay = begin + k, hidden + k * size, decays + k * size
        if _is_padding(job, row, step):
            _copy(before, before + size, states)
            continue
        delta, u = load(scratch + k * BYTES), load(job.u + row * job.u_row + step * job.u_step + at)
        drive, y = delta * u, skip * u
        B, C = job.B + row * job.B_row + step * job.B_step, job.C + row * job.C_row + step * job.C_step
        for n in range(states):
            here = n * BYTES
            fade = exp2(delta * load(rates + here))
            h = fade * load(before + here) + drive * spread(load_one(B + n * 4))
            store(decay + here, fade)
            store(before + size + here, h)
            y = y + h * spread(load_one(C + n * 4))
        store(ys + k * BYTES, y)


@numba.njit
def _gates_of_chunk(job: Any, row: int, block: int, begin: int, count: int, scratch: int) -> None:
    """Give dz and add to dD; turn y into its gradient."""
    at, width, ys = block * BYTES, job.blocks * BYTES, scratch + job.chunk * BYTES
    d_skip = load(job.dD + row * width + at)
    for k in range(count):
        step = begin + k
        if _is_padding(job, row, step):
            continue
        z = load(job.z + row * job.z_row + step * job.z_step + at)
        grad = load(job.grad + row * job.grad_row + step * job.grad_step + at)
        gate = sigmoid(z)
        slope = gate * (spread(1.0) + z * (spread(1.0) - gate))
        store(job.dz + (row * job.steps + step) * width + at, grad * load(ys + k * BYTES) * slope)
        grad_y = grad * (z * gate)
        store(ys + k * BYTES, grad_y)
        d_skip = d_skip + grad_y * load(job.u + row * job.u_row + step * job.u_step + at)
    store(job.dD + row * width + at, d_skip)


@numba.njit
def _backward_chunk(job: Any, row: int, block: int, begin: int, count: int, scratch: int) -> None:
    """Go back through a chunk whose states are there."""
    states, chunk, at, width = job.states, job.chunk, block * BYTES, job.blocks * BYTES
    size = states * BYTES
    rates, own = job.rates + block * size, (row * job.blocks + block) * size
    carry, d_rates, skip = job.carry + own, job.d_rates + own, load(job.D + at)
    decays = scratch + 2 * chunk * BYTES
    for k in range(count - 1, -1, -1):
        step, decay = begin + k, decays + k * size
        sum_B, sum_C, before = decay + chunk * size, decay + 2 * chunk * size, decay + 3 * chunk * size
        to = (row * job.steps + step) * width + at
        if _is_padding(job, row, step):
            store(job.du + to, spread(0.0))
            store(job.dz + to, spread(0.0))
            continue
        delta, grad_y = load(scratch + k * BYTES), load(scratch + (chunk + k) * BYTES)
        u = load(job.u + row * job.u_row + step * job.u_step + at)
        drive, d_drive, d_exponent = delta * u, spread(0.0), spread(0.0)
        B, C = job.B + row * job.B_row + step * job.B_step, job.C + row * job.C_row + step * job.C_step
        for n in range(states):
            here = n * BYTES
            d_h = load(carry + here) + grad_y * spread(load_one(C + n * 4))
            store(sum_C + here, load(sum_C + here) + grad_y * load(before + size + here))
            store(sum_B + here, load(sum_B + here) + drive * d_h)
            d_drive = d_drive + d_h * spread(load_one(B + n * 4))
            back = d_h * load(decay + here)
            store(carry + here, back)
            d_power = back * load(before + here)
            d_exponent = d_exponent + d_power * load(rates + here)
            store(d_rates + here, load(d_rates + here) + d_power * delta)
        store(job.du + to, skip * grad_y + d_drive * delta)
        # Of the step size; `rates` are in powers of two.
        store(job.ddt + to, d_drive * u + d_exponent * spread(LN_2))
    _through_softplus(job, row, block, begin, count)


@numba.njit
def _through_softplus(job: Any, row: int, block: int, begin: int, count: int) -> None:
    """Turn gradients of step sizes into those of dt, and add to that of the bias."""
    at, width = block * BYTES, job.blocks * BYTES
    bias, d_bias = load(job.bias + at), load(job.d_bias + row * width + at)
    for k in range(count):
        step, place = begin + k, job.ddt + (row * job.steps + begin + k) * width + at
        if _is_padding(job, row, step):
            store(place, spread(0.0))
            continue
        grad = load(place) * sigmoid(load(job.dt + row * job.dt_row + step * job.dt_step + at) + bias)
        store(place, grad)
        d_bias = d_bias + grad
    store(job.d_bias + row * width + at, d_bias)


@Kernel
def scan_step(pointer: Any) -> None:
    """One position of the scan, for every row: a task is a block of a row; `state` (batch, width, state) is updated."""
    job = carray(pointer, 1)[0]
    scratch = job.scratch + next_slot(job) * job.scratch_size
    size = job.states * BYTES
    task = next_task(job)
    while task >= 0:
        row, at = task // job.blocks, task % job.blocks * BYTES
        raw, u = load(job.dt + row * job.dt_row + at) + load(job.bias + at), load(job.u + row * job.u_row + at)
        out = job.out + task * BYTES
        A, B, C = job.A + task % job.blocks * size, job.B + row * job.B_row, job.C + row * job.C_row
        step_block(softplus(raw), u, A, B, C, job.states, job.state + task * size, out, scratch)
        z = load(job.z + row * job.z_row + at)
        store(out, (load(out) + load(job.D + at) * u) * (z * sigmoid(z)))
        task = next_task(job)


@numba.njit
def step_block(delta: Any, u: Any, A: int, B: int, C: int, states: int, state: int, out: int, scratch: int) -> None:
    """Update a block's states by one position and write C h of each channel to `out`.

    `A` and `state` (lane, state) lie with the states innermost, so vectors go over channels and states alike, and what
    is one number a channel is written out first, into 2 + 2 `states` vectors of scratch.
    """
    powers = scratch + 2 * BYTES
    drives = powers + states * BYTES
    store(scratch, delta * spread(LOG2_E))
    store(scratch + BYTES, delta * u)
    for channel in range(LANES):
        power, drive = load_one(scratch + channel * 4), load_one(scratch + BYTES + channel * 4)
        for n in range(states):
            store_one(powers + (channel * states + n) * 4, power)
            store_one(drives + (channel * states + n) * 4, drive * load_one(B + n * 4))
    for n in range(states):
        here = n * BYTES
        h = exp2(load(powers + here) * load(A + here)) * load(state + here) + load(drives + here)
        store(state + here, h)
    for channel in range(LANES):
        y = load_one(state + channel * states * 4) * load_one(C)
        for n in range(1, states):
            y += load_one(state + (channel * states + n) * 4) * load_one(C + n * 4)
        store_one(out + channel * 4, y)
