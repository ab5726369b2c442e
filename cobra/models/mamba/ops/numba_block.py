"""One token through a whole Mamba block in one call, written for numba.

For a small model a step takes as long as it takes to call PyTorch's forty operations a block; here they are one. Rows
of the batch are independent: a task is some of them, threads meet nowhere, and each task reads the weights once.
"""

import math
from typing import Any

import numba
import numpy as np
from numba import carray

from cobra.models.mamba.ops.numba_conv import conv_block
from cobra.models.mamba.ops.numba_lanes import (
    BYTES,
    LANES,
    LOG2_E,
    exp2,
    load,
    load_one,
    sigmoid,
    softplus,
    spread,
    store,
    store_one,
    total,
)
from cobra.models.mamba.ops.numba_runtime import Kernel, next_slot, next_task
from cobra.models.mamba.ops.numba_scan import step_block

# Rows of a matrix whose products with a vector are formed at a time.
_AT_A_TIME = 4


def scratch_numbers(rows: int, d_model: int, width: int, reads: int, states: int) -> int:
    """Return how many numbers of scratch a thread of :func:`block_step` needs; `reads` is the height of `x_proj`."""
    return rows * (d_model + 4 * width + reads) + width * (1 + states) + (2 + 2 * states) * LANES


@Kernel
def block_step(pointer: Any) -> None:
    """Add, norm, mix: a task is `rows` rows of the batch.

    `hidden`, `residual` (or 0), `stream` and `out` are (batch, d_model); `stream` becomes the sum of the first two and
    `out` the mixer's output. `window` (batch, width, taps) and `state` (batch, width, state) are updated. Weights are
    those of the block as they lie, biases 0 where there is none; `eps` is the address of a number. `d_model` and
    `width` are whole blocks.
    """
    job = carray(pointer, 1)[0]
    scratch = job.scratch + next_slot(job) * job.scratch_size
    task = next_task(job)
    while task >= 0:
        first = task * job.rows
        _step_rows(job, first, min(job.rows, job.batch - first), scratch)
        task = next_task(job)


@numba.njit
def _step_rows(job: Any, first: int, rows: int, scratch: int) -> None:
    d_model, width, height = job.d_model * 4, job.width * 4, job.rank + 2 * job.states
    normed, projected = scratch, scratch + rows * d_model
    u = projected + rows * 2 * width
    y = u + rows * width
    A = y + rows * width
    reads = A + width * job.states
    work = reads + rows * height * 4
    for row in range(rows):
        _add_and_norm(job, first + row, normed + row * d_model)
    _products(job.in_proj, job.in_bias, 2 * job.width, job.d_model, normed, projected, rows)
    for row in range(rows):
        _convolve(job, first + row, projected + row * 2 * width, u + row * width)
    _products(job.x_proj, 0, height, job.width, u, reads, rows)
    for place in range(0, width * job.states, BYTES):
        store(A + place, spread(0.0) - exp2(load(job.A_log + place) * spread(LOG2_E)))
    for row in range(rows):
        gates = projected + (2 * row + 1) * width
        _scan(job, first + row, u + row * width, gates, reads + row * height * 4, A, y + row * width, work)
    _products(job.out_proj, job.out_bias, job.d_model, job.width, y, job.out + first * d_model, rows)


@numba.njit
def _add_and_norm(job: Any, row: int, normed: int) -> None:
    """Add a row's hidden values to its residual stream and write the RMS norm of the sum."""
    begin, squares = row * job.d_model * 4, spread(0.0)
    for at in range(0, job.d_model * 4, BYTES):
        value = load(job.hidden + begin + at)
        if job.residual != 0:
            value = value + load(job.residual + begin + at)
        store(job.stream + begin + at, value)
        squares = squares + value * value
    mean = total(squares) / np.float32(job.d_model) + load_one(job.eps)
    scale = spread(np.float32(1.0) / math.sqrt(mean))
    for at in range(0, job.d_model * 4, BYTES):
        store(normed + at, load(job.stream + begin + at) * scale * load(job.norm + at))


@numba.njit
def _products(matrix: int, bias: int, height: int, length: int, x: int, out: int, rows: int) -> None:
    """Write matrix @ x + bias for rows of x (rows, length) to `out` (rows, height); a part of the matrix at a time."""
    line = length * 4
    for top in range(0, height - height % _AT_A_TIME, _AT_A_TIME):
        a = matrix + top * line
        b, c, d = a + line, a + 2 * line, a + 3 * line
        for row in range(rows):
            sum_a, sum_b, sum_c, sum_d = spread(0.0), spread(0.0), spread(0.0), spread(0.0)
            for at in range(0, line, BYTES):
                value = load(x + row * line + at)
                sum_a = sum_a + load(a + at) * value
                sum_b = sum_b + load(b + at) * value
                sum_c = sum_c + load(c + at) * value
                sum_d = sum_d + load(d + at) * value
            target = out + (row * height + top) * 4
            store_one(target, total(sum_a))
            store_one(target + 4, total(sum_b))
            store_one(target + 8, total(sum_c))
            store_one(target + 12, total(sum_d))
    for top in range(height - height % _AT_A_TIME, height):
        for row in range(rows):
            sum_a = spread(0.0)
            for at in range(0, line, BYTES):
                sum_a = sum_a + load(matrix + top * line + at) * load(x + row * line + at)
            store_one(out + (row * height + top) * 4, total(sum_a))
    if bias != 0:
        for row in range(rows):
            for top in range(height):
                place = out + (row * height + top) * 4
                store_one(place, load_one(place) + load_one(bias + top * 4))


@numba.njit
def _convolve(job: Any, row: int, inputs: int, u: int) -> None:
    """Shift a row's window by its inputs, and write the convolution's SiLU to `u`."""
    for at in range(0, job.width * 4, BYTES):
        bias = spread(0.0)
        if job.conv_bias != 0:
            bias = load(job.conv_bias + at)
        window = job.window + (row * job.width * 4 + at) * job.taps
        conv_block(inputs + at, bias, job.conv + at * job.taps, job.taps, window, u + at)


@numba.njit
def _scan(job: Any, row: int, u: int, gates: int, reads: int, A: int, y: int, work: int) -> None:
    """Take a row's states one step on, and write the gated output to `y`; `reads` are dt, B and C of the row."""
    B = reads + job.rank * 4
    C = B + job.states * 4
    for channel in range(job.width):
        dt = load_one(job.dt_bias + channel * 4)
        for k in range(job.rank):
            dt += load_one(job.dt_proj + (channel * job.rank + k) * 4) * load_one(reads + k * 4)
        store_one(work + channel * 4, dt)
    for at in range(0, job.width * 4, BYTES):
        state = job.state + (row * job.width * 4 + at) * job.states
        inputs, gate = load(u + at), load(gates + at)
        delta = softplus(load(work + at))
        step_block(delta, inputs, A + at * job.states, B, C, job.states, state, y + at, work + job.width * 4)
        store(y + at, (load(y + at) + load(job.D + at) * inputs) * (gate * sigmoid(gate)))
