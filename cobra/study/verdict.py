"""Verdict of a study in words that claim no more than its numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cobra.evaluation.metrics.significance import ALPHA
from cobra.preprocessing.datasets.answer_forms import ANSWER_FORMS, CONCLUSION, FULL, SHUFFLED
from cobra.study.effects import POWER, Effect
from cobra.study.exam import Score
from cobra.util.numbers import counted, percent

START = "start"
"""Name of the checkpoint that all arms begin from."""


@dataclass(frozen=True)
class Comparison:
    """Two arms of a study and what lies between them in one measure."""

    first: str
    second: str
    about: str
    """Cause that the difference shows, as the object of a sentence."""
    measure: str
    effect: Effect
    kinds: Mapping[str, Effect]
    """Effects by kind of question, corrected for their number; empty where the measure has no kinds."""
    is_of_arms: bool = True
    """False where two single models are compared: nothing is known of other seeds."""
    lower_is_better: bool = False
    """True where less of the measure is better, as of errors."""


def pairs_of(arms: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return the pairs of arms that are compared, each with the cause that it shows.

    Arms of `--dataset.answer` are compared with what shows one cause each; any others with the first one. Every arm is
    in a pair.
    """
    if not set(arms) & set(ANSWER_FORMS):
        return _against(arms[0], arms)
    trained = [arm for arm in arms if arm != START]
    first = next(arm for arm in (CONCLUSION, FULL, *trained) if arm in trained)
    pairs = []
    if START in arms:
        what = {CONCLUSION: "conclusions alone", FULL: "whole answers"}.get(first, first)
        pairs.append((START, first, f"training on these rows ({what})"))
    if FULL not in arms:
        return pairs + _against(first, trained)
    if CONCLUSION in arms:
        pairs.append((CONCLUSION, FULL, "reasoning before the conclusion"))
    if SHUFFLED in arms:
        pairs.append((SHUFFLED, FULL, "stages that fit the question, in place of another row's,"))
    others = [arm for arm in trained if arm not in (FULL, CONCLUSION, SHUFFLED)]
    return pairs + [(arm, FULL, f"the full form in place of {arm}") for arm in others]


def _against(first: str, arms: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return the pairs of one arm with each of the others."""
    return [(first, arm, f"taking {arm} in place of {first}") for arm in arms if arm != first]


def verdict(comparisons: Sequence[Comparison], scores: Mapping[str, Sequence[Score]], n: int, seeds: int) -> list[str]:
    """Return a sentence for each comparison, and one on what the study cannot tell.

    Args:
        comparisons: Pairs of arms with what lies between them.
        scores: Scores of every arm's models, for what an answer costs.
        n: Questions.
        seeds: Models of the arm that has fewest.
    """
    sentences = [_sentence(comparison) + _cost(comparison, scores) for comparison in comparisons]
    sentences.append(
        f"These are {counted(n, 'question')} and {counted(seeds, 'model')} an arm; another data set, model size or "
        "limit of tokens may give another answer."
    )
    return sentences


def _sentence(comparison: Comparison) -> str:
    effect, about = comparison.effect, comparison.about
    size = f"{100 * effect.difference:+.1f} points of {comparison.measure} from {comparison.first} to "
    size += comparison.second
    if np.isnan(effect.p_value):
        return (
            f"Nothing can be said of {about}: with one seed of an arm a difference of {size} may be the seed's. Two "
            "seeds or more of each tell."
        )
    spread = f"{_spread(effect)}, p = {effect.p_value:.2g}"
    where = _by_kind(comparison)
    if not effect.is_claimed:
        power = "" if np.isnan(effect.smallest) else _power(effect)
        return f"No effect of {about} can be claimed: {size} ({spread}).{power}{where}"
    verb = "helped" if (effect.difference > 0) != comparison.lower_is_better else "did harm"
    if not comparison.is_of_arms:
        where += " This is about these two models: what other seeds would have given is not known."
    return f"{about[0].upper()}{about[1:]} {verb}: {size} ({spread}).{where}"


def _by_kind(comparison: Comparison) -> str:
    """Return a sentence on the kinds of questions that show an effect: those where it helps and those where it harms.

    A mean over kinds hides that a trace may lead to one kind of answer and away from another.
    """
    claimed = {kind: part.difference for kind, part in comparison.kinds.items() if part.is_claimed}
    more, less = (
        ", ".join(f"{kind} ({100 * size:+.1f})" for kind, size in claimed.items() if size * sign > 0)
        for sign in ((-1, 1) if comparison.lower_is_better else (1, -1))
    )
    if more and less:
        return f" It helped in {more}, and did harm in {less}."
    if not comparison.effect.is_claimed:
        return f" Single kinds do differ: {more or less}." if claimed else ""
    if not claimed:
        return " No single kind of question shows it alone." if comparison.kinds else ""
    return f" By kind it is seen in {more or less}."


def _spread(effect: Effect) -> str:
    """Return how far the difference may be another one: its interval, or what a number of like questions bounds."""
    if np.isnan(effect.low):
        # Did more of such questions differ, one of these n would have shown it with a probability of 95 %.
        most = percent(1 - ALPHA ** (1 / effect.n))
        return (
            f"the same for each of the {counted(effect.n, 'question')}; with 95 % confidence at most {most} % of such "
            "questions differ from that"
        )
    return f"95 % interval {100 * effect.low:+.1f} to {100 * effect.high:+.1f}"


def _power(effect: Effect) -> str:
    return (
        f" An effect of {100 * effect.smallest:.1f} points would have been seen with a probability of "
        f"{100 * POWER:.0f} %."
    )


def _cost(comparison: Comparison, scores: Mapping[str, Sequence[Score]]) -> str:
    """Return what an answer of both arms costs, where that is known."""
    words = []
    for arm in (comparison.first, comparison.second):
        # Costs are those of the first measure's answers; logs of lmms-eval have none.
        if arm not in scores or comparison.measure != next(iter(scores[arm][0].values)):
            return ""
        tokens = [score.tokens for score in scores[arm] if score.tokens is not None]
        seconds = [score.seconds for score in scores[arm] if score.seconds is not None]
        if not tokens:
            return ""
        words.append(f"{np.mean(tokens):.0f} tokens" + (f" and {np.mean(seconds):.3f} s" if seconds else ""))
    return f" An answer of {comparison.first} takes {words[0]}, one of {comparison.second} {words[1]}."
