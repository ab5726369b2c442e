"""Confidence intervals of the variants' scores on the same images, and p-values of their differences.

**Intervals** come from the paired bootstrap over images (Efron and Tibshirani, 1993; for BLEU: Koehn, 2004): images are
drawn with replacement, every variant is scored on the same draws, and the 2.5th and 97.5th percentiles are the ends.

**p-values** come from the paired permutation test ("approximate randomisation": Noreen, 1989; Riezler and Maxwell,
2005) on the same sufficient statistics: under the null hypothesis the two variants' outputs on an image might as well
have been exchanged, so they are, image by image with probability 1/2, and p is the share of such exchanges, the
observed one counted among them, whose difference is at least as large in size. That is exact at any n: p is uniform
where the two have one distribution, and exactly 1 where they are equal. A bootstrap of the centred difference, the
usual alternative, is so only for many images: of null differences in BLEU it called 3 % (BLEU-4) to 7 % (BLEU-1)
significant at 5 % with 40 of COCO's images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from cobra.evaluation.metrics.base import SHOWN_SCALE, Metric, Metrics, Scores

REPLICATES = 2000
SEED = 7
ALPHA = 0.05
"""A difference is claimed where p, after Holm's correction, is below this."""

# What is shown as 0.1 after rounding.
_SEEN = 0.0005
# Differences that rounding alone can make.
_TIE = 1e-12
# Weights held at once, 8 bytes each.
_CHUNK = 4_000_000

# Half of the 95 % interval on COCO val2017, x100, times the root of n: 1.2 BLEU-4 and 4.7 CIDEr at 1,000 images.
_HALF_WIDTHS = {"BLEU-4": 37, "CIDEr": 140}
# The same of a share of a half, which is known least.
_SHARE = 98
_SMALL_N = 1000

Draw = Callable[[np.random.Generator, int, int], Scores]


@dataclass(frozen=True)
class Estimate:
    """A score, or a difference of two, with its 95 % interval; fractions, of CIDEr up to 10."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two variants in one metric."""

    metric: str
    first: str
    second: str
    difference: Estimate
    """Score of the second less that of the first."""
    p_value: float
    """Two-sided."""
    p_holm: float
    """After Holm's correction for all pairs of variants in this metric."""
    label: str = ""
    """Name of the metric in sentences; empty is its key."""

    @property
    def is_claimed(self) -> bool:
        """True if p after Holm is below 5 %, the interval excludes 0, and the difference is visible as printed.

        BLEU's constants make scores of 1e-6 where no n-gram is right; even those can differ significantly.
        """
        seen = abs(self.difference.value) >= _SEEN
        return bool(seen and self.p_holm < ALPHA and not self.difference.low <= 0 <= self.difference.high)

    def sentence(self, n: int) -> str:
        """Say in a sentence what may be claimed of n images; scores x100."""
        label = self.label or self.metric
        if not self.is_claimed:
            return f"no difference in {label} between {self.first} and {self.second} can be claimed at n = {n:,}"
        sign = 1 if self.difference.value > 0 else -1
        size, *ends = (sign * SHOWN_SCALE * number for number in astuple(self.difference))
        low, high = sorted(ends)
        digits = 1 if size >= 1 else 2
        return (
            f"{self.second} is {'above' if sign > 0 else 'below'} {self.first} in {label} by {size:.{digits}f} (95 % "
            f"interval {low:.{digits}f} to {high:.{digits}f}, p = {self.p_holm:.2g} after Holm)"
        )


def estimate_all(
    variants: Mapping[str, Metrics], replicates: int = REPLICATES, seed: int = SEED
) -> dict[str, dict[str, Estimate]]:
    """Give every metric of every variant its interval.

    Args:
        variants: Metrics of the same N images, by variant.
        replicates: Bootstrap samples.
        seed: The same one draws the same samples for any variants of N images.

    Raises:
        ValueError: The numbers of images differ, or are 0.
    """
    samples = _summed(variants, replicates, [seed, 0], _draws)
    return {
        variant: {
            name: _estimate(float(metric.corpus()), metric.from_sums(samples[variant][name]))
            for name, metric in metrics.items()
        }
        for variant, metrics in variants.items()
    }


def compare_all(variants: Mapping[str, Metrics], replicates: int = REPLICATES, seed: int = SEED) -> list[Comparison]:
    """Compare every pair of variants in every metric that both have.

    The arguments, and what is raised, are those of :func:`estimate_all`, with as many exchanges for the p-values as
    samples. The earlier variant of a pair is its first. The order is by metric, then pair.
    """
    samples = _summed(variants, replicates, [seed, 0], _draws)
    kept = _summed(variants, replicates, [seed, 1], _exchanges)
    comparisons: list[Comparison] = []
    for name in dict.fromkeys(name for metrics in variants.values() for name in metrics):
        having = {variant: metrics[name] for variant, metrics in variants.items() if name in metrics}
        rows = []
        for (first, one), (second, two) in combinations(having.items(), 2):
            observed = float(two.corpus() - one.corpus())
            sampled = two.from_sums(samples[second][name]) - one.from_sums(samples[first][name])
            p_value = _p_value(observed, one, two, kept[first][name] - kept[second][name])
            rows.append((first, second, _estimate(observed, sampled), p_value))
        label = next(iter(having.values())).label
        adjusted = holm([row[-1] for row in rows])
        comparisons += [Comparison(name, *row, p, label) for row, p in zip(rows, adjusted, strict=True)]
    return comparisons


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, 1979), in their own order: at most 1, never below the given."""
    p, order = np.asarray(p_values, dtype=np.float64), np.argsort(p_values, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, np.arange(len(p), 0, -1) * p[order]))
    return adjusted.tolist()


def small_sample_warning(n: int, count: Callable[[int], str], labels: Sequence[str]) -> str | None:
    """Return what a reader must know of scores on fewer than 1,000 images; None for more.

    Args:
        n: Images.
        count: Words for a number of them.
        labels: Labels of the metrics.
    """
    if n >= _SMALL_N:
        return None
    known = {name: width / n**0.5 for name, width in _HALF_WIDTHS.items() if name in labels}
    widths = " and ".join(f"{name} to about +-{width:.1f}" for name, width in known.items())
    widths += " (x100, 95 %, measured on COCO)" if known else f"a share to about +-{_SHARE / n**0.5:.1f} % (95 %)"
    return f"With {count(n)} scores are known roughly, {widths}: smaller differences may be chance."


def _estimate(value: float, sampled: Scores) -> Estimate:
    low, high = np.percentile(sampled, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _p_value(observed: float, first: Metric, second: Metric, moved: Scores) -> float:
    """Return the share of exchanges, `moved` (R, K) being what the kept images add, with the observed difference."""
    # Added to the other one's total in this order, so that equal variants stay equal to the last bit.
    one = first.from_sums(second.statistics.sum(axis=0) + moved)
    two = second.from_sums(first.statistics.sum(axis=0) - moved)
    as_large = np.count_nonzero(np.abs(two - one) >= abs(observed) - _TIE)
    return (1 + as_large) / (1 + len(moved))


def _draws(rng: np.random.Generator, rows: int, n: int) -> Scores:
    """Draw n of n images with replacement, and return how often each one came, shape (rows, n)."""
    drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _exchanges(rng: np.random.Generator, rows: int, n: int) -> Scores:
    """Draw which images keep their variant (1) and which exchange it (0), shape (rows, n)."""
    return rng.integers(2, size=(rows, n)).astype(np.float64)


def _summed(
    variants: Mapping[str, Metrics], replicates: int, seeds: list[int], draw: Draw
) -> dict[str, dict[str, Scores]]:
    """Return every metric's statistics summed with weights, shape (replicates, K), drawn in chunks to save memory."""
    sizes = {len(metric.statistics) for metrics in variants.values() for metric in metrics.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"variants are compared on the same images, and these have {sorted(sizes)} of them")
    n = sizes.pop()
    tables = {name: np.hstack([m.statistics for m in metrics.values()]) for name, metrics in variants.items()}
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in variants}
    rows, rng = max(1, _CHUNK // n), np.random.default_rng(seeds)
    for start in range(0, replicates, rows):
        weights = draw(rng, min(rows, replicates - start), n)
        for name, table in tables.items():
            parts[name].append(weights @ table)
    sums: dict[str, dict[str, Scores]] = {}
    for name, metrics in variants.items():
        ends = np.cumsum([metric.statistics.shape[1] for metric in metrics.values()])
        columns = np.split(np.concatenate(parts[name]), ends[:-1], axis=1)
        sums[name] = dict(zip(metrics, columns, strict=True))
    return sums
