"""The metrics of one variant, from its answers."""

from collections.abc import Sequence

from cobra.evaluation.bleu import ORDER, BleuCounts, bleu_counts, corpus_bleu, length_ratio
from cobra.evaluation.coco import CaptionedImage
from cobra.evaluation.protocol import Answer
from cobra.evaluation.similarity import SentenceSimilarity
from cobra.evaluation.tokenizer import tokenize

Metrics = dict[str, float]


class CaptionScorer:
    """Scores captions against the references of fixed images; all variants go through the same one."""

    def __init__(self, images: Sequence[CaptionedImage], similarity: SentenceSimilarity | None) -> None:
        """Tokenise the references.

        Args:
            images: N images.
            similarity: Built from the same images' references; None leaves the embedding similarity out.
        """
        self._references = [[tokenize(text) for text in image.references] for image in images]
        self._similarity = similarity

    def score(self, captions: Sequence[str]) -> Metrics:
        """Score one caption for each image.

        Returns:
            `bleu_1` to `bleu_4` (corpus), `length_ratio` (tokens over those of the references closest in length) and,
            if embeddings are at hand, `similarity_mean` and `similarity_max` (over references; averaged over images).
        """
        counts = self._counts(captions)
        metrics = {f"bleu_{n}": float(value) for n, value in zip(range(1, ORDER + 1), corpus_bleu(counts), strict=True)}
        metrics["length_ratio"] = length_ratio(counts)
        if self._similarity is not None:
            similarity = self._similarity.compare(captions)
            metrics["similarity_mean"] = float(similarity.mean.mean())
            metrics["similarity_max"] = float(similarity.maximum.mean())
        return metrics

    def score_answers(self, answers: Sequence[Answer]) -> Metrics:
        """Score a model's answers, one for each image.

        Returns:
            The metrics of :meth:`score` on the scored texts; `raw_bleu_4`, BLEU-4 of the answers as generated;
            `valid_structure`, the share of answers with all four stages; `conclusion_fallbacks`, the share that had
            no CONCLUSION, so that something else was scored.
        """
        metrics = self.score([answer.scored for answer in answers])
        metrics["raw_bleu_4"] = float(corpus_bleu(self._counts([answer.raw for answer in answers]))[-1])
        metrics["valid_structure"] = sum(answer.valid_structure for answer in answers) / len(answers)
        metrics["conclusion_fallbacks"] = sum(answer.source != "conclusion" for answer in answers) / len(answers)
        return metrics

    def _counts(self, captions: Sequence[str]) -> BleuCounts:
        return bleu_counts([tokenize(caption) for caption in captions], self._references)
