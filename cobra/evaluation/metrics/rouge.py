"""ROUGE-L exactly as coco-caption computes it (Lin, 2004; beta = 1.2, the best precision and the best recall)."""

from collections.abc import Sequence

import numpy as np

from cobra.evaluation.metrics.base import Captions, MeanMetric, Metrics, References, Scorer, Scores

_BETA = 1.2


def rouge(references: References) -> Scorer:
    """Make `rouge_l`."""

    def score(captions: Captions) -> Metrics:
        return {"rouge_l": MeanMetric(rouge_l(captions.tokens, references.tokens), "ROUGE-L")}

    return score


def rouge_l(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Scores:
    """Score one caption for each of N images.

    Args:
        hypotheses: Tokens of the captions.
        references: Tokens of one or more reference captions for each image.

    Returns:
        Shape (N,), fractions of 1. Precision and recall may be those of different references.

    Raises:
        ValueError: The numbers of captions and of images differ, or an image has no reference.
    """
    return np.array([_score(hypothesis, own) for hypothesis, own in zip(hypotheses, references, strict=True)])


def _score(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    if not references:
        raise ValueError("an image has no reference caption")
    # coco-caption splits the empty string into one empty token, so that two empty captions are equal.
    tokens = hypothesis or [""]
    places: dict[str, int] = {}
    for place, token in enumerate(tokens):
        places[token] = places.get(token, 0) | 1 << place
    precision = recall = 0.0
    for reference in references:
        others = reference or [""]
        common = _common_subsequence(places, len(tokens), others)
        precision = max(precision, common / len(tokens))
        recall = max(recall, common / len(others))
    if precision == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_subsequence(places: dict[str, int], length: int, tokens: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two texts (Hyyro, 2004: one column is one integer).

    Args:
        places: Places of each token in the first text, as bits.
        length: Tokens of the first text.
        tokens: The second text.
    """
    column = whole = (1 << length) - 1
    for token in tokens:
        matches = column & places.get(token, 0)
        column = (column + matches | column - matches) & whole
    return length - column.bit_count()
