"""The metrics of one variant, from its answers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.metrics.base import MeanMetric, Metrics
from cobra.evaluation.metrics.bleu import BleuMetric, BleuReferences, bleu_metrics, length_ratio
from cobra.evaluation.metrics.chair import Chair, Objects
from cobra.evaluation.metrics.cider import CiderD, InverseDocumentFrequency
from cobra.evaluation.metrics.java_metrics import JavaMetrics
from cobra.evaluation.metrics.ngrams import ORDER, Ngrams, count_ngrams
from cobra.evaluation.metrics.ptb_tokenizer import MAX_CHARACTERS, count_cut, tokenize
from cobra.evaluation.metrics.rouge import rouge_l
from cobra.evaluation.metrics.similarity import SentenceSimilarity, Similarity
from cobra.evaluation.responses.protocol import Answer

FLOOR_SEED = 7
"""Of the captions that are shuffled."""

_OF_RAW = " of the raw text"


class CaptionScorer:
    """Scores captions against the references of fixed images; all variants go through the same one."""

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        similarity: SentenceSimilarity | None = None,
        idf_from: Sequence[CaptionedImage] | InverseDocumentFrequency | None = None,
        objects: Objects | None = None,
        java: JavaMetrics | None = None,
    ) -> None:
        """Take in the references.

        Args:
            images: N images, at least one.
            similarity: Built from the same images' references; None leaves the embedding similarity out.
            idf_from: Whose references CIDEr's idf is counted on, e.g. a whole annotation file's where only a sample of
                it is scored; None is `images`.
            objects: What is in the images (:func:`cobra.evaluation.metrics.chair.read_objects`); None leaves CHAIR out.
            java: The metrics that need Java; None leaves them out.

        Raises:
            UserError: `objects` lacks images.
        """
        self._images = images
        self._cut_references = count_cut(text for image in images for text in image.references)
        self._references = [[tokenize(text) for text in image.references] for image in images]
        ngrams = [[count_ngrams(tokens) for tokens in own] for own in self._references]
        if idf_from is not None and not isinstance(idf_from, InverseDocumentFrequency):
            idf_from = InverseDocumentFrequency(map(_ngrams, idf_from))
        self._bleu = BleuReferences(ngrams)
        self._cider = CiderD(ngrams, idf_from)
        self._similarity = similarity
        self._objects = objects
        self._chair = None if objects is None else Chair(images, objects)
        self._java = java

    def score(self, captions: Sequence[str]) -> Metrics:
        """Score one caption for each image.

        Returns:
            `bleu_1` to `bleu_4`, `rouge_l`, `cider`, `length_ratio` (tokens over those of the references closest in
            length); where they can be had `similarity_mean` and `similarity_max` (over references), `chair_i` and
            `chair_s`, `meteor`, `spice`. Fractions of 1, `cider` 0 to 10.

        Raises:
            UserError: A Java program fails.
        """
        tokens = [tokenize(caption) for caption in captions]
        ngrams = [count_ngrams(own) for own in tokens]
        counts = self._bleu.count(ngrams)
        metrics: Metrics = {f"bleu_{n}": metric for n, metric in enumerate(bleu_metrics(counts), 1)}
        metrics["rouge_l"] = MeanMetric(rouge_l(tokens, self._references), "ROUGE-L")
        metrics["cider"] = MeanMetric(self._cider.score(ngrams), "CIDEr")
        if self._java is not None:
            metrics |= self._java.score(tokens, self._references)
        if self._similarity is not None:
            similarity = self._similarity.compare(captions)
            warning = _similarity_warning(similarity)
            metrics |= {
                "similarity_mean": MeanMetric(
                    similarity.mean, "similarity, mean", "cosine of embeddings, mean over references"
                ),
                "similarity_max": MeanMetric(
                    similarity.maximum, "similarity, closest", "cosine of embeddings, closest reference"
                ),
            }
            for name in ("similarity_mean", "similarity_max"):
                metrics[name].warning = warning
        metrics["length_ratio"] = length_ratio(counts)
        metrics["length_ratio"].warning = self._length_warning(captions)
        if self._chair is not None:
            metrics |= self._chair.score(captions)
        return metrics

    def _length_warning(self, captions: Sequence[str]) -> str:
        """Return what is to be said of captions and references that are too long to be scored whole."""
        cut = count_cut(captions)
        if not cut and not self._cut_references:
            return ""
        return (
            f"Texts of which only the first {MAX_CHARACTERS:,} characters are scored: {cut:,} among the captions, "
            f"{self._cut_references:,} among the references."
        )

    def score_answers(self, answers: Sequence[Answer]) -> Metrics:
        """Score a model's answers, one for each image.

        Returns:
            The metrics of :meth:`score` on the scored texts; `raw_bleu_4` and `raw_cider`, those of the answers as
            generated; `valid_structure`, the share of answers with all four stages; `conclusion_fallbacks`, the share
            that had no CONCLUSION, so that something else was scored.

        Raises:
            UserError: A Java program fails.
        """
        metrics = self.score([answer.scored for answer in answers])
        raw = [count_ngrams(tokenize(answer.raw)) for answer in answers]
        metrics["raw_bleu_4"] = BleuMetric(self._bleu.count(raw), ORDER, _OF_RAW)
        metrics["raw_cider"] = MeanMetric(self._cider.score(raw), f"CIDEr{_OF_RAW}")
        metrics["valid_structure"] = valid_structure(answers)
        metrics["conclusion_fallbacks"] = MeanMetric(
            [answer.source != "conclusion" for answer in answers],
            "answers without CONCLUSION",
            "something else was scored; lower is better",
        )
        return metrics

    def floors(self) -> dict[str, Metrics]:
        """Score captions whose quality is known, so that others can be placed between them.

        Returns:
            `shuffled`, the floor: every image gets another one's first reference, the same one at each call; absent
            where there is one image. `human`, the ceiling: every image's first reference against its other ones, with
            the same idf; over the images that have two or more, absent where none has. It is a little too low, as
            systems are compared with one reference more.

        Raises:
            UserError: A Java program fails.
        """
        floors = {}
        if len(self._images) > 1:
            firsts = [image.references[0] for image in self._images]
            floors["shuffled"] = self.score([firsts[index] for index in derangement(len(firsts), FLOOR_SEED)])
        several = [image for image in self._images if len(image.references) > 1]
        if several:
            floors["human"] = self._without_first(several).score([image.references[0] for image in several])
        return floors

    def _without_first(self, images: Sequence[CaptionedImage]) -> "CaptionScorer":
        """Return a scorer against all references of these images but the first."""
        others = [replace(image, references=image.references[1:]) for image in images]
        similarity = self._similarity and self._similarity.against([image.references for image in others])
        return CaptionScorer(others, similarity, self._cider.idf, self._objects, self._java)


def _similarity_warning(similarity: Similarity) -> str:
    if not similarity.cut:
        return ""
    return (
        f"The embedding similarity reads the first {similarity.limit} tokens of a text. Captions and references that "
        f"are longer, so that what they say behind that does not change it: {similarity.cut:,}."
    )


def valid_structure(answers: Sequence[Answer]) -> MeanMetric:
    """Return the share of answers with all four stages."""
    valid = [answer.valid_structure for answer in answers]
    return MeanMetric(valid, "valid structure", "four stages, closed, in order")


def _ngrams(image: CaptionedImage) -> list[Ngrams]:
    return [count_ngrams(tokenize(text)) for text in image.references]


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
