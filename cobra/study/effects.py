"""Effect of one arm over another, with a test that counts the noise of questions and that of seeds.

An arm is trained once for each of its seeds, and every model answers the same questions. Two things make the difference
of two arms' means uncertain: other questions would have been easier for one of them, and other seeds would have given
other models. The first is seen in the spread of the per-question differences (means over seeds), the second in the
spread of the models' means (over questions):

    V = var_q(d_q) / n  +  var_s(first) / k_first  +  var_s(second) / k_second

The spread over questions holds a part of the noise of seeds and the spread over seeds a part of that of questions, so
the sum errs on the side of claiming too little (Cameron, Gelbach and Miller, 2011, subtract what is counted twice).
Degrees of freedom follow Satterthwaite (1946): three seeds an arm know their spread roughly, and the interval is as
wide as that asks for. Leaving out the spread over seeds, as a paired test of two models does, would call a lucky seed
an effect of the arm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from cobra.evaluation.metrics.significance import ALPHA, holm

POWER = 0.8
"""Probability with which the smallest effect that is named would have been claimed."""

# Differences that rounding alone can make, as a fraction of the scores.
_TIE = 1e-12

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """Difference of two arms' means, as a fraction of 1: that of the second less that of the first."""

    difference: float
    low: float
    """Lower end of the 95 % interval; NaN, as `high` and `smallest`, where every question differs alike: no spread
    tells how far others may differ."""
    high: float
    p_value: float
    """Two-sided, of this comparison alone."""
    smallest: float
    """Smallest true difference that this many questions and seeds would have claimed with probability `POWER`."""
    question_error: float
    """Standard error that the choice of questions makes."""
    seed_error: float
    """Standard error that the choice of seeds makes; NaN where an arm that was trained has one seed."""
    n: int
    """Questions."""
    p_holm: float = float("nan")
    """p after Holm's correction for the comparisons that it was made with; NaN for one made alone."""

    @property
    def is_claimed(self) -> bool:
        """True if p, after Holm's correction where there is one, is below 5 %; never from a single seed."""
        return (self.p_value if np.isnan(self.p_holm) else self.p_holm) < ALPHA


def measure_effect(first: Matrix, second: Matrix, are_fixed: tuple[bool, bool] = (False, False)) -> Effect:
    """Compare two arms on the same questions.

    Args:
        first: Scores (k, n) of the first arm's models: 1 or 0, or a share, for each of k seeds and n questions.
        second: Scores (l, n) of the second arm's models on the same questions.
        are_fixed: True for an arm that is a single model without a seed, such as the checkpoint that all start from.

    Raises:
        ValueError: The arms have different questions, or fewer than two.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or first.shape[1] < 2:
        raise ValueError(f"two arms of the same two or more questions were expected, not {first.shape}, {second.shape}")
    n = first.shape[1]
    by_question = second.mean(axis=0) - first.mean(axis=0)
    difference, nan = float(by_question.mean()), float("nan")
    # (variance of a mean, degrees of freedom) of each source of noise.
    parts = [(float(by_question.var(ddof=1)) / n, n - 1)]
    for scores in [arm for arm, is_fixed in zip((first, second), are_fixed, strict=True) if not is_fixed]:
        if len(scores) < 2:
            return Effect(difference, nan, nan, nan, nan, parts[0][0] ** 0.5, nan, n)
        parts.append((float(scores.mean(axis=1).var(ddof=1)) / len(scores), len(scores) - 1))
    error, freedom = _satterthwaite(parts)
    questions, seeds = parts[0][0] ** 0.5, sum(variance for variance, _ in parts[1:]) ** 0.5
    tie = _TIE * max(float(np.abs(first).max()), float(np.abs(second).max()))
    if error <= tie:
        # Every question differs alike: all that is known is their number, as in a sign test.
        p_value = 1.0 if abs(difference) <= tie else 2.0 ** (1 - n)
        return Effect(difference, nan, nan, p_value, nan, questions, seeds, n)
    edge = float(student.ppf(1 - ALPHA / 2, freedom))
    p_value = float(2 * student.sf(abs(difference) / error, freedom))
    smallest = (edge + float(student.ppf(POWER, freedom))) * error
    low, high = difference - edge * error, difference + edge * error
    return Effect(difference, low, high, p_value, smallest, questions, seeds, n)


def measure_kinds(
    first: Matrix, second: Matrix, kinds: Sequence[str], are_fixed: tuple[bool, bool] = (False, False), least: int = 2
) -> Mapping[str, Effect]:
    """Compare two arms on each kind of questions, p-values corrected for the number of kinds.

    Args:
        first: Scores (k, n), as :func:`measure_effect` takes them.
        second: Scores (l, n).
        kinds: Kind of each of the n questions; the result has them in the order of their first question.
        are_fixed: As there.
        least: Questions that a kind has at least to be compared.
    """
    labels = np.asarray(kinds)
    masks = {kind: labels == kind for kind in dict.fromkeys(kinds)}
    effects = {
        kind: measure_effect(first[:, mask], second[:, mask], are_fixed)
        for kind, mask in masks.items()
        if mask.sum() >= least
    }
    corrected = holm([1.0 if np.isnan(effect.p_value) else effect.p_value for effect in effects.values()])
    return {
        kind: Effect(**(vars(effect) | {"p_holm": effect.p_value if np.isnan(effect.p_value) else p}))
        for (kind, effect), p in zip(effects.items(), corrected, strict=True)
    }


def _satterthwaite(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Return the standard error of a sum of independent parts, and its degrees of freedom."""
    variance = sum(part for part, _ in parts)
    scale = sum(part**2 / freedom for part, freedom in parts)
    return variance**0.5, variance**2 / scale if scale else float("inf")
