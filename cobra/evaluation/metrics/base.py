"""Corpus metrics as sufficient statistics: sums over images from which the score of any resampled corpus follows.

A metric of N images holds a table (N, K) whose column sums determine its value. Resampling images then costs a product
of matrices, never another look at the captions; and metrics that are no mean of the images' scores, such as BLEU, are
resampled as exactly as those that are.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]
Weights = NDArray[np.int64] | NDArray[np.float64]
"""(..., N): how often each image counts; whole numbers. Floating-point ones spare a conversion."""

SHOWN_SCALE = 100
"""Scores are fractions (CIDEr goes to 10); people read them times this, as papers print them."""


class Metric(ABC):
    """A metric of N images, with what tables, charts and sentences call it: nothing else has to know of it.

    Attributes:
        label: Its name in tables and sentences; empty is its key among :data:`Metrics`.
        warning: What makes this variant's score less than it seems, a sentence; shown wherever scores are. Empty where
            there is nothing to say.
        note: What a reader of the page has to know of it, in a few words, e.g. that lower is better.
    """

    label: str = ""
    note: str = ""
    warning: str = ""

    @property
    @abstractmethod
    def statistics(self) -> Scores:
        """(N, K): what is summed over images."""

    @abstractmethod
    def from_sums(self, sums: Scores) -> Scores:
        """Return the scores, shape (...), of corpora whose statistics sum to `sums`, shape (..., K)."""

    @property
    def per_image(self) -> Scores:
        """(N,): the score of each image alone."""
        return self.from_sums(self.statistics)

    def corpus(self, weights: Weights | None = None) -> Scores:
        """Return the score of all images together.

        Args:
            weights: (..., N) how often each image counts; None is once each.

        Returns:
            Shape (...); a plain number's shape () for None.
        """
        if weights is None:
            return self.from_sums(self.statistics.sum(axis=0))
        # Sums of whole numbers stay exact, and floating-point products are many times faster than those of integers.
        return self.from_sums(np.asarray(weights, dtype=np.float64) @ self.statistics)


Metrics = dict[str, Metric]
"""By name, in the order in which they are shown."""


class RatioMetric(Metric):
    """A sum of counts over another one, such as CHAIR-i: hallucinated objects over mentioned ones."""

    def __init__(self, numerators: ArrayLike, denominators: ArrayLike, label: str = "", note: str = "") -> None:
        """Take (N,) numerators and (N,) whole denominators; a corpus whose denominators sum to 0 is divided by 1."""
        self.label = label
        self.note = note
        columns = [np.asarray(column, dtype=np.float64) for column in (numerators, denominators)]
        self._statistics = np.stack(columns, axis=-1)

    @property
    def statistics(self) -> Scores:
        """(N, 2): numerator and denominator."""
        return self._statistics

    def from_sums(self, sums: Scores) -> Scores:
        """Divide."""
        return sums[..., 0] / np.maximum(sums[..., 1], 1)


class MeanMetric(RatioMetric):
    """The mean of the images' own scores, such as CIDEr with a fixed idf."""

    def __init__(self, per_image: ArrayLike, label: str = "", note: str = "") -> None:
        """Take (N,) scores; booleans are 0 and 1."""
        scores = np.asarray(per_image, dtype=np.float64)
        super().__init__(scores, np.ones_like(scores), label, note)


def value(metric: Metric) -> float:
    """Return a metric's score on its images, as a plain number."""
    return float(metric.corpus())
