"""The loops of the causal convolution with its SiLU, written for numba; see :mod:`cobra.models.mamba.ops.numba_scan`.

`front` (batch, taps - 1, width) holds the inputs before the first, `weight` (taps, width) one row a tap, the last of
which multiplies the current input.
"""

from typing import Any

import numba
from numba import carray

from cobra.models.mamba.ops.numba_lanes import BYTES, LANES, load, load_one, sigmoid, spread, store, store_one
from cobra.models.mamba.ops.numba_runtime import Kernel, next_task


@Kernel
def conv_forward(pointer: Any) -> None:
    """Convolve: a task is a block of a row. `out` is (batch, time, width)."""
    job = carray(pointer, 1)[0]
    task = next_task(job)
    while task >= 0:
        row, at = task // job.blocks, task % job.blocks * BYTES
        width = job.blocks * BYTES
        out, bias, weight = job.out + row * job.steps * width + at, load(job.bias + at), job.weight + at
        before = min(job.taps - 1, job.steps)
        for step in range(before):
            total = _early_sum(job, row, at, step, bias)
            store(out + step * width, total * sigmoid(total))
        x = job.x + row * job.x_row + at - (job.taps - 1) * job.x_step
        for step in range(before, job.steps):
            total = bias
            for tap in range(job.taps):
                total = total + load(x + (step + tap) * job.x_step) * load(weight + tap * width)
            store(out + step * width, total * sigmoid(total))
        task = next_task(job)


@numba.njit
def _input_at(job: Any, row: int, at: int, step: int) -> int:
    """Return the address of a block's inputs at a step, which may lie in `front`."""
    if step < 0:
        return job.front + (row * (job.taps - 1) + step + job.taps - 1) * job.blocks * BYTES + at
    return job.x + row * job.x_row + step * job.x_step + at


@numba.njit
def _early_sum(job: Any, row: int, at: int, step: int, bias: Any) -> Any:
    """Return the sum over taps at any step, in the order of later ones."""
    total = bias
    for tap in range(job.taps):
        source = _input_at(job, row, at, step + tap - job.taps + 1)
        total = total + load(source) * load(job.weight + tap * job.blocks * BYTES + at)
    return total


@Kernel
def conv_backward(pointer: Any) -> None:
    """Gradient of the convolution: a task is a block of a row.

    `dx` and `d_front` are of the shapes of `x` and `front`; `d_weight` (batch, taps, width) and `d_bias` (batch, width)
    are zeros and take sums over time.
    """
    job = carray(pointer, 1)[0]
    task = next_task(job)
    while task >= 0:
        row, at = task // job.blocks, task % job.blocks * BYTES
        _gradients_before_silu(job, row, at)
        width, before = job.blocks * BYTES, job.taps - 1
        dx, d_front = job.dx + row * job.steps * width + at, job.d_front + row * before * width + at
        # In ascending order: a gradient before the SiLU is read by its own step last, and then overwritten.
        for step in range(-before, job.steps):
            total = spread(0.0)
            for later in range(max(0, -step), min(before, job.steps - 1 - step) + 1):
                total = total + load(dx + (step + later) * width) * load(job.weight + (before - later) * width + at)
            store(dx + step * width if step >= 0 else d_front + (step + before) * width, total)
        task = next_task(job)


@numba.njit
def _gradients_before_silu(job: Any, row: int, at: int) -> None:
    """Fill `dx` with the gradients of the sums over taps, and add up those of weight and bias."""
    width = job.blocks * BYTES
    bias, d_bias = load(job.bias + at), spread(0.0)
    d_weight = job.d_weight + row * job.taps * width + at
    for step in range(job.steps):
        total = _early_sum(job, row, at, step, bias)
        gate = sigmoid(total)
        slope = gate * (spread(1.0) + total * (spread(1.0) - gate))
        grad = load(job.grad + row * job.grad_row + step * job.grad_step + at) * slope
        store(job.dx + (row * job.steps + step) * width + at, grad)
        d_bias = d_bias + grad
        for tap in range(job.taps):
            source = _input_at(job, row, at, step + tap - job.taps + 1)
            store(d_weight + tap * width, load(d_weight + tap * width) + grad * load(source))
    store(job.d_bias + row * width + at, d_bias)


@Kernel
def conv_step(pointer: Any) -> None:
    """One position of the convolution, for every row: a task is a block of a row; see :func:`conv_block`."""
    job = carray(pointer, 1)[0]
    task = next_task(job)
    while task >= 0:
        row, block = task // job.blocks, task % job.blocks
        weight, window = job.weight + block * job.taps * BYTES, job.window + task * job.taps * BYTES
        x, out = job.x + row * job.x_row + block * BYTES, job.out + task * BYTES
        conv_block(x, load(job.bias + block * BYTES), weight, job.taps, window, out)
        task = next_task(job)


@numba.njit
def conv_block(x: int, bias: Any, weight: int, taps: int, window: int, out: int) -> None:
    """Shift a block's window (lane, taps), so that it ends in x, and write SiLU of the sum with `weight` to `out`."""
    for channel in range(LANES):
        newest, place = load_one(x + channel * 4), channel * taps * 4
        sum_of_taps = newest * load_one(weight + place + (taps - 1) * 4)
        for tap in range(taps - 1):
            value = load_one(window + place + (tap + 1) * 4)
            sum_of_taps += value * load_one(weight + place + tap * 4)
            store_one(window + place + tap * 4, value)
        store_one(window + place + (taps - 1) * 4, newest)
        store_one(out + channel * 4, sum_of_taps)
    sums = load(out) + bias
    store(out, sums * sigmoid(sums))
