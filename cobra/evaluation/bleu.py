"""BLEU-1 to BLEU-4 exactly as coco-caption computes it (Papineni et al., 2002, with that program's constants).

Everything is computed from counts kept per image, so that a corpus of any resampled images costs a sum.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cobra.evaluation.metric import Metric, RatioMetric, Scores, Weights

ORDER = 4

# Added by coco-caption to every numerator and denominator; its published digits depend on them.
_TINY = 1e-15
_SMALL = 1e-9

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class BleuCounts:
    """Sufficient statistics of BLEU for N images."""

    correct: Counts
    """(N, 4): n-grams of the hypothesis, n = 1 to 4, that a reference holds too, clipped to the largest count there."""
    guessed: Counts
    """(N, 4): n-grams of the hypothesis."""
    length: Counts
    """(N,): tokens of the hypothesis."""
    reference_length: Counts
    """(N,): tokens of the reference that is closest in length to the hypothesis; of two, the shorter."""


def bleu_counts(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> BleuCounts:
    """Count what BLEU needs.

    Args:
        hypotheses: Tokens of one caption for each of N images.
        references: Tokens of one or more reference captions for each image.

    Raises:
        ValueError: The numbers of hypotheses and of images with references differ, or an image has no reference.
    """
    rows = [_count(hypothesis, own) for hypothesis, own in zip(hypotheses, references, strict=True)]
    table = np.array(rows, dtype=np.int64).reshape(len(rows), 2 * ORDER + 2)
    return BleuCounts(table[:, :ORDER], table[:, ORDER : 2 * ORDER], table[:, -2], table[:, -1])


def _count(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> list[int]:
    if not references:
        raise ValueError("an image has no reference caption")
    largest: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        largest |= _ngrams(reference)
    correct = [0] * ORDER
    for ngram, count in _ngrams(hypothesis).items():
        correct[len(ngram) - 1] += min(count, largest[ngram])
    length = len(hypothesis)
    guessed = [max(0, length - n) for n in range(ORDER)]
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    return [*correct, *guessed, length, closest]


def _ngrams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(tokens[start : start + n]) for n in range(1, ORDER + 1) for start in range(len(tokens) - n + 1)
    )


class BleuMetric(Metric):
    """BLEU-n; a corpus is scored on its summed counts, not by the mean of its images' scores."""

    def __init__(self, counts: BleuCounts, n: int) -> None:
        """Take the counts of N images for n-grams of up to `n` (1 to 4) tokens."""
        self._n = n
        columns = (counts.correct[:, :n], counts.guessed[:, :n], counts.length, counts.reference_length)
        self._statistics = np.column_stack(columns).astype(np.float64)

    @property
    def statistics(self) -> Scores:
        """(N, 2n + 2): correct and guessed n-grams, both lengths."""
        return self._statistics

    def from_sums(self, sums: Scores) -> Scores:
        """Combine precisions and brevity penalty."""
        n = self._n
        precisions = (sums[..., :n] + _TINY) / (sums[..., n : 2 * n] + _SMALL)
        ratio = (sums[..., -2] + _TINY) / (sums[..., -1] + _SMALL)
        brevity = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
        return np.prod(precisions, axis=-1) ** (1 / n) * brevity


def bleu_metrics(counts: BleuCounts) -> list[Metric]:
    """Return BLEU-1 to BLEU-4."""
    return [BleuMetric(counts, n) for n in range(1, ORDER + 1)]


def length_ratio(counts: BleuCounts) -> Metric:
    """Return the tokens of the hypotheses over those of the references closest in length."""
    return RatioMetric(counts.length, counts.reference_length)


def corpus_bleu(counts: BleuCounts, weights: Weights | None = None) -> Scores:
    """Return BLEU-1 to BLEU-4 of all images together, shape (..., 4); see :meth:`Metric.corpus`."""
    return np.stack([metric.corpus(weights) for metric in bleu_metrics(counts)], axis=-1)
