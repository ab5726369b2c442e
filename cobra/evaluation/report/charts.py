"""Intervals and histograms of the page's charts, as places on their axes."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cobra.util.charts import Axis

# Bars in a histogram at most.
_BARS = 32


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
