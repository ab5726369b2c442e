"""Scorer of captions: applies a list of metrics to a variant's captions and to captions of known quality."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_sources import Pictures
from cobra.evaluation.metrics.base import Captions, MeanMetric, MetricMaker, Metrics, References
from cobra.evaluation.responses.protocol import Answer

FLOOR_SEED = 7
"""Seed for shuffling captions."""

# Metrics that are also given of the answers as generated.
_RAW = frozenset({"bleu_4", "cider"})


class CaptionScorer:
    """Scores captions against the references of fixed images; all variants go through the same one."""

    def __init__(
        self, images: Sequence[CaptionedImage], makers: Sequence[MetricMaker], pictures: Pictures | None = None
    ) -> None:
        """Prepare the metrics of N images, at least one, in the order in which they are shown.

        Raises:
            UserError: A metric lacks what it needs to know of the images.
        """
        self._makers = makers
        self._references = References(images, pictures)
        self._scorers = [maker(self._references) for maker in makers]

    def score(self, captions: Sequence[str]) -> Metrics:
        """Score one caption for each image in all metrics; fractions of 1, `cider` 0 to 10.

        Raises:
            UserError: A metric's program fails.
        """
        scored = Captions(captions)
        return {name: metric for scorer in self._scorers for name, metric in scorer(scored).items()}

    def score_answers(self, answers: Sequence[Answer]) -> Metrics:
        """Score a model's answers, one for each image.

        Returns:
            The metrics of :meth:`score` on the scored texts; `raw_bleu_4` and `raw_cider` of the answers as generated;
            the shares `valid_structure`, and `conclusion_fallbacks` of answers without a CONCLUSION.

        Raises:
            UserError: A metric's program fails.
        """
        scored, raw = Captions([answer.scored for answer in answers]), Captions([answer.raw for answer in answers])
        metrics: Metrics = {}
        raw_metrics: Metrics = {}
        for scorer in self._scorers:
            scores = scorer(scored)
            metrics |= scores
            if _RAW & scores.keys():
                raw_metrics |= {f"raw_{name}": metric for name, metric in scorer(raw).items() if name in _RAW}
        for metric in raw_metrics.values():
            metric.label += " of the raw text"
            metric.is_detail = metric.of_stages = True
        label, note = "answers without CONCLUSION", "something else was scored"
        fallen = [answer.source != "conclusion" for answer in answers]
        fallbacks = MeanMetric(fallen, label, note, lower_is_better=True, is_detail=True, of_stages=True)
        return metrics | raw_metrics | {"valid_structure": valid_structure(answers), "conclusion_fallbacks": fallbacks}

    def floors(self) -> dict[str, Metrics]:
        """Score captions whose quality is known, so that others can be placed between them.

        Returns:
            `shuffled`, the floor: every image gets another one's first reference, the same one at each call; absent
            where there is one image. `human`, the ceiling: every image's first reference against its other ones, over
            the images that have two or more, absent where none has. It is a little too low, as systems are compared
            with one reference more.

        Raises:
            UserError: A metric's program fails.
        """
        floors, images = {}, self._references.images
        if len(images) > 1:
            order = derangement(len(images), FLOOR_SEED)
            floors["shuffled"] = self.score([images[index].references[0] for index in order])
        several = [image for image in images if len(image.references) > 1]
        if several:
            fewer = [replace(image, references=image.references[1:]) for image in several]
            ceiling = CaptionScorer(fewer, self._makers, self._references.pictures)
            floors["human"] = ceiling.score([image.references[0] for image in several])
        return floors


def valid_structure(answers: Sequence[Answer]) -> MeanMetric:
    """Return the share of answers with all four stages."""
    valid = [answer.valid_structure for answer in answers]
    about = {"share": "answers with all four stages", "of_stages": True}
    return MeanMetric(valid, "valid structure", "four stages, closed, in order", **about)


def derangement(count: int, seed: int) -> list[int]:
    """Return a permutation of two or more, 0 to `count` - 1, that leaves nothing in its place: a random cycle."""
    cycle = np.random.default_rng(seed).permutation(count)
    permutation = np.empty(count, dtype=np.int64)
    permutation[cycle] = np.roll(cycle, -1)
    return permutation.tolist()
