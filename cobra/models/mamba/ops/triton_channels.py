"""Loads and stores of the scan's backward kernel, of a block of channels each."""

# Kernels grow tuples, each longer one of another type.
# mypy: disable-error-code="assignment"

import triton
import triton.language as tl

from cobra.models.mamba.ops.triton_scan import high, low


@triton.jit
def two_of(x: tl.tensor) -> tl.tensor:
    """Return pointers, each with the one that follows it."""
    x = tl.expand_dims(x, -1)
    return x + tl.reshape(tl.arange(0, 2), [1] * (len(x.shape) - 1) + [2])


@triton.jit
def quads(
    pairs: tl.tensor, lane: tl.tensor, COUNT: tl.constexpr, WIDE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return B and C of COUNT steps, by loads of two steps each."""
    values, both = (), two_of(pairs + lane * 0)
    for ahead in tl.static_range(0, COUNT, 2):
        if WIDE == tl.float64:
            for place in tl.static_range(4):
                values = values + (tl.load(pairs + 2 * ahead + place),)
        else:
            first, second = tl.split(tl.load(both + ahead))
            values = values + (low(first), high(first), low(second), high(second))
    return values


@triton.jit
def carried(
    carry: tl.tensor, inside: tl.tensor, EVEN: tl.constexpr, WIDE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return the gradient of a state, that of its rate so far, and the rate: one load of a channel's four numbers."""
    if WIDE == tl.float64:
        return (
            tl.load(carry, mask=inside, other=0.0),
            tl.load(carry + 1, mask=inside, other=0.0),
            tl.load(carry + 2, mask=inside, other=0.0),
        )
    first, second = tl.split(channel(two_of(carry), tl.expand_dims(inside, -1), EVEN))
    return low(first), high(first), low(second)


@triton.jit
def put_back(
    carry: tl.tensor, slope: tl.tensor, d_rate: tl.tensor, inside: tl.tensor, EVEN: tl.constexpr, WIDE: tl.constexpr,
) -> None:  # fmt: skip
    """Put the first two of these numbers back."""
    if WIDE == tl.float64:
        tl.store(carry, slope, mask=inside)
        tl.store(carry + 1, d_rate, mask=inside)
    else:
        first = slope.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        store(carry, first | (d_rate.to(tl.int32, bitcast=True).to(tl.int64) << 32), inside, EVEN)


@triton.jit
def whole_steps(
    x: tl.tensor, channels: tl.tensor, inside: tl.tensor, STEP: tl.constexpr, COUNT: tl.constexpr, EVEN: tl.constexpr,
    WIDE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return COUNT steps of the channels."""
    values = ()
    for ahead in tl.static_range(COUNT):
        values = values + (channel(x + ahead * STEP + channels, inside, EVEN).to(WIDE),)
    return values


@triton.jit
def channel(x: tl.tensor, inside: tl.tensor, EVEN: tl.constexpr) -> tl.tensor:
    """Return numbers of the channels. A mask costs a load an instruction more, so that there is none where all are."""
    if EVEN:
        return tl.load(x)
    return tl.load(x, mask=inside, other=0)


@triton.jit
def later(values: tl.tuple, early: tl.tensor, COUNT: tl.constexpr, EVERY: tl.constexpr) -> tl.tuple:
    """Return the values, with zeros for those before the step `early`."""
    kept = ()
    for place in tl.static_range(COUNT):
        kept = kept + (tl.where(place * EVERY >= early, values[place], 0.0),)
    return kept


@triton.jit
def store(x: tl.tensor, value: tl.tensor, inside: tl.tensor, EVEN: tl.constexpr) -> None:
    """Store numbers of the channels."""
    if EVEN:
        tl.store(x, value)
    else:
        tl.store(x, value, mask=inside)


@triton.jit
def moved_on(valid: tl.tensor, base: tl.tensor) -> tl.tensor:
    """Return the pointer moved on, or None."""
    moved = valid
    if valid is not None:
        moved = valid + base
    return moved
