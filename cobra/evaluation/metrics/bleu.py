"""BLEU-1 to BLEU-4 exactly as coco-caption computes it (Papineni et al., 2002), and the ratio of lengths beside it.

Everything is computed from counts kept per image, so that a corpus of any resampled images costs a sum.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from cobra.evaluation.metrics.base import (
    ORDER,
    Captions,
    Counts,
    Metric,
    Metrics,
    Ngrams,
    RatioMetric,
    References,
    Scorer,
    Scores,
)
from cobra.evaluation.metrics.ptb_tokenizer import MAX_CHARACTERS, count_cut

# Added by coco-caption to every numerator and denominator; its published digits depend on them.
_TINY = 1e-15
_SMALL = 1e-9


class BleuReferences:
    """The references of N images, ready to be counted against."""

    def __init__(self, references: Sequence[Sequence[Ngrams]]) -> None:
        """Find how often each n-gram may count.

        Raises:
            ValueError: An image has no reference.
        """
        if not all(references):
            raise ValueError("an image has no reference caption")
        self._largest = list(map(_largest, references))
        self._lengths = [{reference.length for reference in alternatives} for alternatives in references]

    def count(self, hypotheses: Sequence[Ngrams]) -> NDArray[np.int64]:
        """Count what BLEU needs of one caption for each image.

        Returns:
            (N, 10): n-grams, n = 1 to 4, that a reference holds too, each clipped to its largest count there; all
            n-grams; tokens; tokens of the reference that is closest in length, of two the shorter.

        Raises:
            ValueError: The numbers of captions and images differ.
        """
        rows = [_count(*row) for row in zip(hypotheses, self._largest, self._lengths, strict=True)]
        return np.array(rows, dtype=np.int64).reshape(len(rows), 2 * ORDER + 2)


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
    guessed = [max(0, hypothesis.length - n) for n in range(ORDER)]
    return [*correct, *guessed, hypothesis.length, _closest_length(hypothesis.length, lengths)]


def _closest_length(length: int, references: Iterable[int]) -> int:
    """Return the reference's length that is closest to a caption's; of two, the shorter."""
    return min(references, key=lambda candidate: (abs(candidate - length), candidate))


class BleuMetric(Metric):
    """BLEU-n; a corpus is scored on its summed counts, not by the mean of its images' scores."""

    def __init__(self, counts: NDArray[np.int64], n: int) -> None:
        """Take the counts of :meth:`BleuReferences.count`, for n-grams of up to `n` (1 to 4) tokens."""
        self.label, self.is_detail = f"BLEU-{n}", n < ORDER
        self._n = n
        columns = (counts[:, :n], counts[:, ORDER : ORDER + n], counts[:, -2:])
        self.statistics = np.hstack(columns).astype(np.float64)

    def from_sums(self, sums: Scores) -> Scores:
        """Combine precisions and brevity penalty."""
        n = self._n
        precisions = (sums[..., :n] + _TINY) / (sums[..., n : 2 * n] + _SMALL)
        ratio = (sums[..., -2] + _TINY) / (sums[..., -1] + _SMALL)
        brevity = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
        return np.prod(precisions, axis=-1) ** (1 / n) * brevity


def bleu_metrics(counts: NDArray[np.int64]) -> Metrics:
    """Return `bleu_1` to `bleu_4`."""
    return {f"bleu_{n}": BleuMetric(counts, n) for n in range(1, ORDER + 1)}


def bleu(references: References) -> Scorer:
    """Make `bleu_1` to `bleu_4`."""
    counted = BleuReferences(references.ngrams)
    return lambda captions: bleu_metrics(counted.count(captions.ngrams))


def length_ratio(references: References) -> Scorer:
    """Make `length_ratio`: tokens over those of the closest reference; its warning counts texts too long to score."""
    lengths = [[reference.length for reference in alternatives] for alternatives in references.ngrams]
    cut_references = count_cut(text for image in references.images for text in image.references)

    def score(captions: Captions) -> Metrics:
        written = [caption.length for caption in captions.ngrams]
        closest = [_closest_length(*pair) for pair in zip(written, lengths, strict=True)]
        cut = count_cut(captions.texts)
        warning = ""
        if cut or cut_references:
            warning = (
                f"Texts of which only the first {MAX_CHARACTERS:,} characters are scored: {cut:,} among the captions, "
                f"{cut_references:,} among the references."
            )
        note = "100 is as long as the closest reference"
        return {"length_ratio": RatioMetric(written, closest, "length ratio", note, warning=warning)}

    return score
