"""Corpus metrics as sufficient statistics: sums over images from which the score of any resampled corpus follows.

A metric of N images holds a table (N, K) whose column sums determine its value. Resampling images then costs a product
of matrices, never another look at the captions; and metrics that are no mean of the images' scores, such as BLEU, are
resampled as exactly as those that are.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_sources import Pictures
from cobra.evaluation.metrics.ptb_tokenizer import tokenize

ORDER = 4
"""Longest n-grams that BLEU and CIDEr count."""

Counts = Counter[tuple[str, ...]]
Scores = NDArray[np.float64]
Weights = NDArray[np.int64] | NDArray[np.float64]
"""(..., N): how often each image counts; whole numbers. Floating-point ones spare a conversion."""

SHOWN_SCALE = 100
"""Scores are fractions (CIDEr goes to 10); people read them times this, as papers print them."""


class Metric(ABC):
    """A metric of N images with all that tables, charts and sentences say of it; no other module knows of it.

    Attributes:
        statistics: (N, K) table of what is summed over images.
        label: Name in tables and sentences; empty where its key among :data:`Metrics` will do.
        note: Explanation for readers of the page, in a few words.
        lower_is_better: True where a lower score is the better one; the page says so behind the note.
        warning: Sentence on what makes this variant's score less than it seems, shown wherever scores are; empty where
            there is nothing to say.
        share: Thing that the score is the share of, as the story names it, such as `right conclusions`; empty for a
            score of another kind.
        judges: True where the score of an image is 1 for a right answer and 0 for a wrong one; answers are marked so.
        is_detail: True where the page and `metrics.json` have it, and the screen leaves it out.
        of_stages: True where it says nothing of a model that writes no stages; it is shown where some variant does.
    """

    statistics: Scores
    label: str = ""
    note: str = ""
    lower_is_better: bool = False
    warning: str = ""
    share: str = ""
    judges: bool = False
    is_detail: bool = False
    of_stages: bool = False

    @property
    def explanation(self) -> str:
        """Note and direction, as the page shows them under the label."""
        return "; ".join([self.note] * bool(self.note) + ["lower is better"] * self.lower_is_better)

    @abstractmethod
    def from_sums(self, sums: Scores) -> Scores:
        """Return the scores, shape (...), of corpora whose statistics sum to `sums`, shape (..., K)."""

    @property
    def per_image(self) -> Scores:
        """(N,): the score of each image alone."""
        return self.from_sums(self.statistics)

    def corpus(self, weights: Weights | None = None) -> Scores:
        """Return the score, shape (...), of all images together; weights (..., N) count each, None once."""
        if weights is None:
            return self.from_sums(self.statistics.sum(axis=0))
        # Sums of whole numbers stay exact, and floating-point products are many times faster than those of integers.
        return self.from_sums(np.asarray(weights, dtype=np.float64) @ self.statistics)


Metrics = dict[str, Metric]
"""Metrics by name, in the order in which they are shown."""


class RatioMetric(Metric):
    """A sum of counts over another, such as CHAIR-i: hallucinated objects over mentioned ones; statistics (N, 2)."""

    def __init__(
        self, numerators: ArrayLike, denominators: ArrayLike, label: str = "", note: str = "", **about: Any
    ) -> None:
        """Take (N,) numerators and (N,) whole denominators; a corpus whose denominators sum to 0 is divided by 1.

        The other arguments are the attributes of :class:`Metric`.

        Raises:
            TypeError: A metric has no such attribute.
        """
        if unknown := about.keys() - Metric.__annotations__.keys():
            raise TypeError(f"a metric has no attribute {', '.join(sorted(unknown))}")
        self.label, self.note = label, note
        vars(self).update(about)
        columns = [np.asarray(column, dtype=np.float64) for column in (numerators, denominators)]
        self.statistics = np.stack(columns, axis=-1)

    def from_sums(self, sums: Scores) -> Scores:
        """Return numerator / denominator; a zero denominator counts as 1."""
        return sums[..., 0] / np.maximum(sums[..., 1], 1)


class MeanMetric(RatioMetric):
    """The mean of the images' own scores, such as CIDEr with a fixed idf."""

    def __init__(self, per_image: ArrayLike, label: str = "", note: str = "", **about: Any) -> None:
        """Take (N,) scores, booleans as 0 and 1; the other arguments are those of :class:`RatioMetric`."""
        scores = np.asarray(per_image, dtype=np.float64)
        super().__init__(scores, np.ones_like(scores), label, note, **about)


def value(metric: Metric) -> float:
    """Return a metric's score on its images, as a plain number."""
    return float(metric.corpus())


@dataclass(frozen=True, slots=True)
class Ngrams:
    """A caption as BLEU and CIDEr see it."""

    length: int
    """Tokens."""
    counts: Counts
    """How often each n-gram, n = 1 to 4, occurs."""


def count_ngrams(tokens: Sequence[str]) -> Ngrams:
    """Count the n-grams of a caption.

    A token may hold a no-break space (`22 3/4`, telephone numbers, tags): coco-caption's BLEU and CIDEr, though not its
    ROUGE-L, take that for two tokens, and so does this.
    """
    words = " ".join(tokens).split()
    starts = [words[n:] for n in range(ORDER)]
    return Ngrams(len(words), Counter(chain.from_iterable(zip(*starts[: n + 1], strict=False) for n in range(ORDER))))


@dataclass(frozen=True)
class References:
    """N images with what captions of them are compared with, tokenised once for all metrics."""

    images: Sequence[CaptionedImage]
    """Images with one or more reference captions each."""
    pictures: Pictures | None = None
    """Source of the images' pixels; None where only texts are scored."""

    @cached_property
    def tokens(self) -> list[list[list[str]]]:
        """Tokens of the reference captions by image."""
        return [[tokenize(text) for text in image.references] for image in self.images]

    @cached_property
    def ngrams(self) -> list[list[Ngrams]]:
        """N-grams of the reference captions by image."""
        return [list(map(count_ngrams, tokens)) for tokens in self.tokens]


@dataclass(frozen=True)
class Captions:
    """One caption for each of N images, tokenised once for all metrics."""

    texts: Sequence[str]

    @cached_property
    def tokens(self) -> list[list[str]]:
        """Tokens by image."""
        return list(map(tokenize, self.texts))

    @cached_property
    def ngrams(self) -> list[Ngrams]:
        """N-grams by image."""
        return list(map(count_ngrams, self.tokens))


Scorer = Callable[[Captions], Metrics]
"""Scores one caption for each of the images that it was made for."""

MetricMaker = Callable[[References], Scorer]
"""Prepares a scorer for images: called once for the images under evaluation, and once for the ceiling, whose images
have one reference less. A metric of pictures loads them from :attr:`References.pictures`."""

EXTRA_METRICS: dict[str, MetricMaker] = {}
"""Metrics of captions from outside the package, by any name; they are scored and shown behind the package's own."""
