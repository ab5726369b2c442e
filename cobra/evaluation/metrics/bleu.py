"""BLEU-1 to BLEU-4 exactly as coco-caption computes it (Papineni et al., 2002, with that program's constants).

Everything is computed from counts kept per image, so that a corpus of any resampled images costs a sum.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cobra.evaluation.metrics.base import Captions, Metric, Metrics, References, Scorer, Scores
from cobra.evaluation.metrics.ngrams import ORDER, Counts, Ngrams

# Added by coco-caption to every numerator and denominator; its published digits depend on them.
_TINY = 1e-15
_SMALL = 1e-9

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class BleuCounts:
    """Sufficient statistics of BLEU for N images."""

    correct: Integers
    """(N, 4): n-grams of the hypothesis, n = 1 to 4, that a reference holds too, clipped to the largest count there."""
    guessed: Integers
    """(N, 4): n-grams of the hypothesis."""
    length: Integers
    """(N,): tokens of the hypothesis."""
    reference_length: Integers
    """(N,): tokens of the reference that is closest in length to the hypothesis; of two, the shorter."""


class BleuReferences:
    """The references of N images, ready to be counted against."""

    def __init__(self, references: Sequence[Sequence[Ngrams]]) -> None:
        """Find how often each n-gram may count.

        Args:
            references: One or more captions for each image.

        Raises:
            ValueError: An image has no reference.
        """
        if not all(references):
            raise ValueError("an image has no reference caption")
        self._largest = [_largest(own) for own in references]
        self._lengths = [{reference.length for reference in own} for own in references]

    def count(self, hypotheses: Sequence[Ngrams]) -> BleuCounts:
        """Count what BLEU needs of one caption for each image.

        Raises:
            ValueError: The numbers of captions and images differ.
        """
        rows = [_count(*row) for row in zip(hypotheses, self._largest, self._lengths, strict=True)]
        table = np.array(rows, dtype=np.int64).reshape(len(rows), 2 * ORDER + 2)
        return BleuCounts(table[:, :ORDER], table[:, ORDER : 2 * ORDER], table[:, -2], table[:, -1])


def _largest(references: Sequence[Ngrams]) -> Counts:
    """Return the largest count of each n-gram in any of an image's references."""
    largest: Counts = Counter()
    for reference in references:
        for ngram, count in reference.counts.items():
            if count > largest.get(ngram, 0):
                largest[ngram] = count
    return largest


def _count(hypothesis: Ngrams, largest: Counts, lengths: Iterable[int]) -> list[int]:
    correct = [0] * ORDER
    for ngram in hypothesis.counts.keys() & largest.keys():
        correct[len(ngram) - 1] += min(hypothesis.counts[ngram], largest[ngram])
    length = hypothesis.length
    guessed = [max(0, length - n) for n in range(ORDER)]
    return [*correct, *guessed, length, closest_length(length, lengths)]


def closest_length(length: int, references: Iterable[int]) -> int:
    """Return the length among the references' that is closest to a caption's; of two, the shorter."""
    return min(references, key=lambda other: (abs(other - length), other))


class BleuMetric(Metric):
    """BLEU-n; a corpus is scored on its summed counts, not by the mean of its images' scores."""

    def __init__(self, counts: BleuCounts, n: int) -> None:
        """Take the counts of N images for n-grams of up to `n` (1 to 4) tokens."""
        self.label = f"BLEU-{n}"
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


def bleu_metrics(counts: BleuCounts) -> Metrics:
    """Return `bleu_1` to `bleu_4`."""
    return {f"bleu_{n}": BleuMetric(counts, n) for n in range(1, ORDER + 1)}


def bleu(references: References) -> Scorer:
    """Make `bleu_1` to `bleu_4`."""
    counted = BleuReferences(references.ngrams)

    def score(captions: Captions) -> Metrics:
        return bleu_metrics(counted.count(captions.ngrams))

    return score
