"""The metrics of one variant, from its answers."""

from collections.abc import Sequence

import numpy as np

from cobra.evaluation.bleu import BleuCounts, bleu_counts, bleu_metrics, length_ratio
from cobra.evaluation.coco import CaptionedImage
from cobra.evaluation.metric import MeanMetric, Metrics
from cobra.evaluation.protocol import Answer
from cobra.evaluation.similarity import SentenceSimilarity
from cobra.evaluation.tokenizer import tokenize

FLOOR_SEED = 7


class CaptionScorer:
    """Scores captions against the references of fixed images; all variants go through the same one."""

    def __init__(self, images: Sequence[CaptionedImage], similarity: SentenceSimilarity | None) -> None:
        """Tokenise the references.

        Args:
            images: N images.
            similarity: Built from the same images' references; None leaves the embedding similarity out.
        """
        self._images = images
        self._references = [[tokenize(text) for text in image.references] for image in images]
        self._similarity = similarity

    def score(self, captions: Sequence[str]) -> Metrics:
        """Score one caption for each image.

        Returns:
            `bleu_1` to `bleu_4`, `length_ratio` (tokens over those of the references closest in length) and, if
            embeddings are at hand, `similarity_mean` and `similarity_max` (over references; averaged over images).
        """
        counts = self._counts(captions)
        metrics: Metrics = {f"bleu_{n}": metric for n, metric in enumerate(bleu_metrics(counts), 1)}
        metrics["length_ratio"] = length_ratio(counts)
        if self._similarity is not None:
            similarity = self._similarity.compare(captions)
            metrics["similarity_mean"] = MeanMetric(similarity.mean)
            metrics["similarity_max"] = MeanMetric(similarity.maximum)
        return metrics

    def score_answers(self, answers: Sequence[Answer]) -> Metrics:
        """Score a model's answers, one for each image.

        Returns:
            The metrics of :meth:`score` on the scored texts; `raw_bleu_4`, BLEU-4 of the answers as generated;
            `valid_structure`, the share of answers with all four stages; `conclusion_fallbacks`, the share that had
            no CONCLUSION, so that something else was scored.
        """
        metrics = self.score([answer.scored for answer in answers])
        metrics["raw_bleu_4"] = bleu_metrics(self._counts([answer.raw for answer in answers]))[-1]
        metrics["valid_structure"] = MeanMetric([answer.valid_structure for answer in answers])
        metrics["conclusion_fallbacks"] = MeanMetric([answer.source != "conclusion" for answer in answers])
        return metrics

    def floors(self) -> dict[str, Metrics]:
        """Score captions whose quality is known, so that others can be placed between them.

        Returns:
            `shuffled`: every image gets another one's first reference, the same one at each call; absent for a single
            image. `human`: every image's first reference against its other ones; over the images that have two or
            more, absent where none has.
        """
        floors = {}
        if len(self._images) > 1:
            firsts = [image.references[0] for image in self._images]
            floors["shuffled"] = self.score([firsts[index] for index in derangement(len(firsts), FLOOR_SEED)])
        several = [image for image in self._images if len(image.references) > 1]
        if several:
            others = [CaptionedImage(image.image_id, image.file_name, image.references[1:]) for image in several]
            floors["human"] = CaptionScorer(others, None).score([image.references[0] for image in several])
        return floors

    def _counts(self, captions: Sequence[str]) -> BleuCounts:
        return bleu_counts([tokenize(caption) for caption in captions], self._references)


def derangement(count: int, seed: int) -> list[int]:
    """Return a permutation of 0 to `count` - 1 that leaves nothing in its place: a random cycle through all.

    Args:
        count: At least 2.
        seed: The same one gives the same permutation.
    """
    cycle = np.random.default_rng(seed).permutation(count)
    permutation = np.empty(count, dtype=np.int64)
    permutation[cycle] = np.roll(cycle, -1)
    return permutation.tolist()
