"""BLEU-1 to BLEU-4 exactly as coco-caption computes it (Papineni et al., 2002, with that program's constants).

Everything is computed from counts kept per image, so that a corpus of any resampled images costs a sum.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDER = 4

# Added by coco-caption to every numerator and denominator; its published digits depend on them.
_TINY = 1e-15
_SMALL = 1e-9

Counts = NDArray[np.int64]
Scores = NDArray[np.float64]


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


def bleu_per_image(counts: BleuCounts) -> Scores:
    """Return BLEU-1 to BLEU-4 of each image alone, shape (N, 4), fractions of 1."""
    return _bleu(counts.correct, counts.guessed, counts.length, counts.reference_length)


def corpus_bleu(counts: BleuCounts, weights: Counts | None = None) -> Scores:
    """Return BLEU-1 to BLEU-4 of all images together, fractions of 1.

    Args:
        counts: Of N images.
        weights: (..., N) how often each image counts, for resampled corpora; None is once each.

    Returns:
        Shape (..., 4). It is not the mean of the images' own scores.
    """
    if weights is None:
        weights = np.ones(len(counts.length), dtype=np.int64)
    sums = (weights @ column for column in (counts.correct, counts.guessed, counts.length, counts.reference_length))
    return _bleu(*sums)


def length_ratio(counts: BleuCounts) -> float:
    """Return the tokens of all hypotheses over those of the references closest in length."""
    return float(counts.length.sum() / max(1, counts.reference_length.sum()))


def _bleu(correct: Counts, guessed: Counts, length: Counts, reference_length: Counts) -> Scores:
    """Combine counts of shapes (..., 4) and (...) into scores of shape (..., 4)."""
    precisions = (correct + _TINY) / (guessed + _SMALL)
    scores = np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, ORDER + 1))
    ratio = (np.asarray(length) + _TINY) / (np.asarray(reference_length) + _SMALL)
    brevity = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    return scores * brevity[..., None]
