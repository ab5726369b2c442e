"""Geometry of charts: axes with round ticks, positions on them in percent, and curves as paths of an SVG."""

import math
from collections.abc import Iterable
from typing import NamedTuple

# Ticks on an axis at most.
_TICKS = 5
# Decimals from which on a number is shorter with its power of ten.
_DECIMALS = 4


class Tick(NamedTuple):
    """A number on an axis."""

    place: float
    label: str


class Axis(NamedTuple):
    """A span of values that is drawn from 0 to 100 percent of a width."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def position(self, value: float) -> float:
        """Return where a value lies, in percent, held inside the axis."""
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0), 1), 2)


def axis(values: Iterable[float], least_span: float = 0.0, least_step: float = 0.0, margin: float = 0.04) -> Axis:
    """Return an axis that holds all finite values among `values`, with ticks at round numbers.

    Args:
        values: Numbers to be shown.
        least_span: Length that no axis falls below, so that a difference of rounding does not look like a finding.
        least_step: Distance that no two ticks fall below, such as 1 for numbers that are counted.
        margin: Part of the axis that is free at both ends.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    missing = max((least_span or 1e-3 * abs(high) or 1.0) - (high - low), 0) / 2
    low, high = low - missing, high + missing
    free = margin * (high - low)
    low, high = low - free, high + free
    step = max(_round_step((high - low) / _TICKS), least_step)
    bare = Axis(low, high, ())
    numbers = [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return bare._replace(ticks=tuple(Tick(bare.position(number), _label(number + 0.0, step)) for number in numbers))


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least * (1 - 1e-9))


def _label(number: float, step: float) -> str:
    decimals = max(-math.floor(math.log10(step) + 1e-9), 0)
    return f"{number:.{decimals}f}" if decimals <= _DECIMALS else f"{number:g}".replace("e-0", "e-")


def path(points: Iterable[tuple[float, float]], across: Axis, up: Axis) -> str:
    """Return the `d` of an SVG's path through (x, y) points, in a view box of 100 x 100."""
    return "M" + "L".join(f"{across.position(x):g},{100 - up.position(y):g}" for x, y in points)


def dots(points: Iterable[tuple[float, float]], across: Axis, up: Axis) -> str:
    """Return the `d` of a path that is a dot at every point, where its lines have round ends."""
    return "".join(f"M{across.position(x):g},{100 - up.position(y):g}h0" for x, y in points)
