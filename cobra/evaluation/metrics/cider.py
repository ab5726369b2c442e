"""CIDEr-D exactly as coco-caption computes it (Vedantam, Zitnick and Parikh, 2015; without stemming)."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.metrics.base import (
    ORDER,
    Counts,
    MeanMetric,
    MetricMaker,
    Ngrams,
    References,
    Scorer,
    Scores,
    count_ngrams,
)
from cobra.evaluation.metrics.ptb_tokenizer import tokenize

# Standard deviation of the length penalty, in bigrams.
_SIGMA = 6.0
_SCALE = 10.0


class InverseDocumentFrequency:
    """How telling an n-gram is: log of the images over log of those with a reference that holds it.

    CIDEr depends on it, so scores on different image sets compare only where it comes from the same references.
    """

    def __init__(self, references: Iterable[Iterable[Ngrams]]) -> None:
        """Count in how many images each n-gram occurs, by the reference captions of each.

        Raises:
            ValueError: There is no image.
        """
        images: Counts = Counter()
        self.images = 0
        for captions in references:
            self.images += 1
            images.update(set().union(*(caption.counts for caption in captions)))
        if not self.images:
            raise ValueError("there are no references to take CIDEr's idf from")
        self._largest = math.log(self.images)
        # An n-gram of one image is as telling as one of none, so most of them need not be kept.
        self._values = {ngram: self._largest - math.log(count) for ngram, count in images.items() if count > 1}

    def __getitem__(self, ngram: tuple[str, ...]) -> float:
        """Return an n-gram's idf, at least 0."""
        return self._values.get(ngram, self._largest)

    def norms(self, counts: Counts) -> list[float]:
        """Return the Euclidean norms of a caption's tf-idf vectors for n = 1 to 4."""
        squares = [0.0] * ORDER
        values, largest = self._values, self._largest
        for ngram, count in counts.items():
            weight = count * values.get(ngram, largest)
            squares[len(ngram) - 1] += weight * weight
        return [math.sqrt(square) for square in squares]


def cider(idf_images: Iterable[CaptionedImage]) -> MetricMaker:
    """Return the maker of `cider`, its idf counted on the references of `idf_images`: of a sample, the whole file's."""
    # One image's n-grams at a time, as a file may have a hundred thousand.
    idf = InverseDocumentFrequency([count_ngrams(tokenize(text)) for text in image.references] for image in idf_images)

    def make(references: References) -> Scorer:
        scorer = CiderD(references.ngrams, idf)
        return lambda captions: {"cider": MeanMetric(scorer.score(captions.ngrams), "CIDEr")}

    return make


class CiderD:
    """Scores captions against the references of N images."""

    def __init__(self, references: Sequence[Sequence[Ngrams]], idf: InverseDocumentFrequency | None = None) -> None:
        """Weigh the references; an idf of None is counted on them.

        Raises:
            ValueError: There is no image, or an image has no reference.
        """
        if not all(references):
            raise ValueError("an image has no reference caption")
        self.idf = InverseDocumentFrequency(references) if idf is None else idf
        self._references = references
        self._norms = [[self.idf.norms(caption.counts) for caption in captions] for captions in references]

    def score(self, hypotheses: Sequence[Ngrams]) -> Scores:
        """Return the score of one caption for each image, shape (N,), each in 0 to 10.

        Raises:
            ValueError: The numbers of captions and images differ.
        """
        return np.array([self._score(*row) for row in zip(hypotheses, self._references, self._norms, strict=True)])

    def _score(self, hypothesis: Ngrams, references: Sequence[Ngrams], norms: Sequence[Sequence[float]]) -> float:
        hypothesis_norms = self.idf.norms(hypothesis.counts)
        total = 0.0
        for reference, reference_norms in zip(references, norms, strict=True):
            products = self._products(hypothesis.counts, reference.counts)
            orders = zip(products, hypothesis_norms, reference_norms, strict=True)
            cosines = (product / (first * second) if product else 0.0 for product, first, second in orders)
            # Counted in bigrams, which makes empty captions as long as those of one token.
            gap = max(0, hypothesis.length - 1) - max(0, reference.length - 1)
            total += sum(cosines) * math.exp(-(gap**2) / (2 * _SIGMA**2))
        return _SCALE * total / (ORDER * len(references))

    def _products(self, hypothesis: Counts, reference: Counts) -> list[float]:
        """Return the products of two tf-idf vectors for n = 1 to 4, the hypothesis' clipped to the reference's."""
        products = [0.0] * ORDER
        # In the caption's order: a set's order changes from run to run, and with it the last digits of the sums.
        for ngram in filter(reference.__contains__, hypothesis):
            count = reference[ngram]
            products[len(ngram) - 1] += min(hypothesis[ngram], count) * count * self.idf[ngram] ** 2
        return products
