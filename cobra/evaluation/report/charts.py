"""Geometry of the page's charts: axes with round ticks, and positions on them in percent of their width."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Ticks on an axis at most, and bars in a histogram.
_TICKS = 5
_BARS = 32
# No axis is shorter: what is smaller than a tenth of it would look like a finding, and is shown as 0.0 beside it.
_LEAST_SPAN = 1.0
# Of an axis' length, free at both ends.
_MARGIN = 0.04


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


class Strip(NamedTuple):
    """An interval around a value, as places on an axis."""

    low: float
    value: float
    high: float


class Bar(NamedTuple):
    """A bin of lengths: shares of captions and of references in it, and the same as parts of the tallest bar."""

    label: str
    captions: float
    references: float
    caption_height: float
    reference_height: float


class Histogram(NamedTuple):
    """Lengths of one variant's captions beside those of the references, in tokens."""

    name: str
    mean: float
    median: float
    bars: tuple[Bar, ...]


def axis(values: Iterable[float]) -> Axis:
    """Return an axis that holds all finite values among `values`, scores x100, with ticks at round numbers."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    missing = max(_LEAST_SPAN - (high - low), 0) / 2
    low, high = low - missing, high + missing
    margin = _MARGIN * (high - low)
    low, high = low - margin, high + margin
    step = _round_step((high - low) / _TICKS)
    digits = max(-math.floor(math.log10(step) + 1e-9), 0)
    bare = Axis(low, high, ())
    numbers = [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return bare._replace(ticks=tuple(Tick(bare.position(number), f"{number + 0.0:.{digits}f}") for number in numbers))


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least * (1 - 1e-9))


def strip(on: Axis, low: float, value: float, high: float) -> Strip | None:
    """Return an interval's places on an axis; None where it is not known."""
    if not all(math.isfinite(number) for number in (low, value, high)):
        return None
    return Strip(on.position(low), on.position(value), on.position(high))


def length_histograms(lengths: Mapping[str, Sequence[int]], references: Sequence[int]) -> list[Histogram]:
    """Return a histogram for each variant's lengths of captions, all with the same bins and heights."""
    everything = np.concatenate([np.asarray(values, dtype=np.int64) for values in (*lengths.values(), references)])
    # The few that are much longer share the last bin.
    width = max(math.ceil((np.percentile(everything, 98) + 1) / _BARS), 1)
    bins = int(min(everything.max() // width + 1, _BARS))
    shares = {name: _shares(values, width, bins) for name, values in lengths.items()}
    human = _shares(references, width, bins)
    tallest = max(float(np.max(values)) for values in (*shares.values(), human))
    labels = [_bin_label(number, width, bins, int(everything.max())) for number in range(bins)]
    histograms = []
    for name, values in lengths.items():
        columns = (shares[name], human, shares[name] / tallest, human / tallest)
        bars = tuple(map(Bar, labels, *(column.tolist() for column in columns)))
        histograms.append(Histogram(name, float(np.mean(values)), float(np.median(values)), bars))
    return histograms


def _shares(values: Sequence[int], width: int, bins: int) -> NDArray[np.float64]:
    places = np.minimum(np.asarray(values, dtype=np.int64) // width, bins - 1)
    return np.bincount(places, minlength=bins) / len(values)


def _bin_label(number: int, width: int, bins: int, longest: int) -> str:
    first, last = number * width, (number + 1) * width - 1
    if number == bins - 1 and longest > last:
        return f"{first} and more"
    return f"{first} to {last}" if last > first else str(first)
