"""States of a channel that are divided among the warps of a program, for batches with too few programs for a GPU.

Tensors of a block of channels are then rows of PARTS, one a warp. What is the same for all states, a part computes for
every PARTS-th step only; parts exchange such things, and sums over states, through shared memory. With PARTS = 1
tensors have one dimension, and nothing is exchanged.
"""

# Kernels grow tuples, each longer one of another type.
# mypy: disable-error-code="assignment"

import triton
import triton.language as tl


@triton.constexpr_function
def _in_halves(count: int, *sizes: int) -> tuple[int, ...]:
    """Return a shape with a dimension of two for each bit of a count."""
    return (*sizes, *[2] * (count.bit_length() - 1))


@triton.constexpr_function
def _parts_last(count: int) -> tuple[int, ...]:
    """Return the order of dimensions that puts the first one behind those of a count of joined tensors."""
    return (*range(1, count.bit_length() + 1), 0)


@triton.jit
def block_of(BLOCK: tl.constexpr, PARTS: tl.constexpr) -> tl.tuple:
    """Return the lanes of a block of channels, and their parts."""
    lane, part = tl.arange(0, BLOCK), 0
    if PARTS > 1:
        part = tl.arange(0, PARTS)[:, None] + tl.zeros([1, BLOCK], tl.int32)
        lane = lane[None, :] + tl.zeros([PARTS, 1], tl.int32)
    return lane, part


@triton.jit
def summed(values: tl.tuple, COUNT: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr) -> tl.tuple:
    """Return the sums over parts of COUNT steps: to each part those of its own steps, added in a fixed order."""
    if PARTS > 1:
        by_turn = tl.reshape(_joined(values, COUNT), [PARTS, BLOCK, COUNT // PARTS, PARTS])
        sums = tl.reshape(tl.permute(by_turn, (3, 1, 2, 0)), _in_halves(COUNT, PARTS, BLOCK))
        for _level in tl.static_range(PARTS.bit_length() - 1):
            first, second = tl.split(sums)
            sums = first + second
        values = _split_up(sums, COUNT // PARTS)
    return values


@triton.jit
def given(values: tl.tuple, COUNT: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr) -> tl.tuple:
    """Return to all parts what each of them has of its own steps: all COUNT steps in order."""
    if PARTS > 1:
        joined = _joined(values, COUNT // PARTS)
        by_step = tl.permute(joined, _parts_last(COUNT // PARTS))
        steps = _split_up(tl.reshape(by_step, _in_halves(COUNT, BLOCK)), COUNT)
        values = ()
        for place in tl.static_range(COUNT):
            values = values + (tl.broadcast_to(steps[place][None, :], [PARTS, BLOCK]),)
    return values


@triton.jit
def _joined(values: tl.tuple, COUNT: tl.constexpr) -> tl.tensor:
    """Return COUNT tensors as one, with a dimension of two for each bit of their places, the highest one first."""
    for level in tl.static_range(COUNT.bit_length() - 1):
        pairs = ()
        for place in tl.static_range(COUNT >> level + 1):
            pairs = pairs + (tl.join(values[place], values[place + (COUNT >> level + 1)]),)
        values = pairs
    return values[0]


@triton.jit
def _split_up(value: tl.tensor, COUNT: tl.constexpr) -> tl.tuple:
    """Return the COUNT tensors that were joined."""
    values = (value,)
    for level in tl.static_range(COUNT.bit_length() - 1):
        lower, upper = (), ()
        for place in tl.static_range(1 << level):
            first, second = tl.split(values[place])
            lower, upper = lower + (first,), upper + (second,)
        values = lower + upper
    return values


@triton.jit
def turns(values: tl.tuple, part: tl.tensor, COUNT: tl.constexpr, PARTS: tl.constexpr) -> tl.tuple:
    """Return to each part its own steps of COUNT steps that all have."""
    if PARTS > 1:
        own = ()
        for begin in tl.static_range(0, COUNT, PARTS):
            value = values[begin]
            for place in tl.static_range(1, PARTS):
                value = tl.where(part == place, values[begin + place], value)
            own = own + (value,)
        values = own
    return values
