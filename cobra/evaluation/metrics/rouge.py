"""ROUGE-L exactly as coco-caption computes it (Lin, 2004; beta = 1.2, the best precision and the best recall)."""

from collections.abc import Sequence

import numpy as np

from cobra.evaluation.metrics.base import MeanMetric, References, Scorer, Scores

_BETA = 1.2


def rouge(references: References) -> Scorer:
    """Make `rouge_l`."""
    return lambda captions: {"rouge_l": MeanMetric(rouge_l(captions.tokens, references.tokens), "ROUGE-L")}


def rouge_l(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Scores:
    """Score one caption for each of N images against its references, all as tokens.

    Returns:
        (N,) fractions of 1. Precision and recall may be those of different references.

    Raises:
        ValueError: The numbers of captions and of images differ, or an image has no reference.
    """
    return np.array([_score(*row) for row in zip(hypotheses, references, strict=True)])


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
        expected = reference or [""]
        common = _common_subsequence(places, len(tokens), expected)
        precision = max(precision, common / len(tokens))
        recall = max(recall, common / len(expected))
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision) if precision else 0.0


def _common_subsequence(places: dict[str, int], length: int, tokens: Sequence[str]) -> int:
    """Return the longest common subsequence's length (Hyyro, 2004); `places` of the first text's tokens are bits."""
    column = whole = (1 << length) - 1
    for token in tokens:
        matches = column & places.get(token, 0)
        column = (column + matches | column - matches) & whole
    return length - column.bit_count()
