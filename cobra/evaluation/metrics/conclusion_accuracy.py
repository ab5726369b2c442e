"""Accuracy of conclusions: the share of held-out questions whose answer is the right one, by source."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from cobra.evaluation.data.holdout_rows import ConclusionRow
from cobra.reasoning.matching import Match, conclusion_key, match_conclusion
from cobra.reasoning.trace import given_conclusion


@dataclass
class KindScore:
    """Right answers to the questions of one kind."""

    n: int = 0
    """Questions."""
    correct: int = 0
    """Conclusions that are the right one."""
    majority: int = 0
    """Right answers of somebody who always gives the commonest answer of the kind."""

    @property
    def accuracy(self) -> float:
        """Share of right conclusions."""
        return self.correct / self.n

    @property
    def p_value(self) -> float:
        """Probability of at least as many right answers if each were right as often as the commonest answer is."""
        return float(binomtest(self.correct, self.n, self.majority / self.n, alternative="greater").pvalue)

    def to_dict(self) -> dict[str, float]:
        """Return the numbers for a JSON file; shares are fractions of 1."""
        shares = {"accuracy": self.accuracy, "majority_accuracy": self.majority / self.n}
        return {"n": self.n, **shares, "p_value": self.p_value}


def score_kinds(answers: Iterable[tuple[str, bool, Hashable]]) -> dict[str, KindScore]:
    """Count right answers by kind of question, in the order of the kinds' first questions.

    Args:
        answers: Kind of each question, True where its answer is right, and the constant answer that is right for it.
    """
    scores: dict[str, KindScore] = {}
    constants: Counter[tuple[str, Hashable]] = Counter()
    for kind, is_right, constant in answers:
        score = scores.setdefault(kind, KindScore())
        score.n += 1
        score.correct += is_right
        constants[kind, constant] += 1
        score.majority = max(score.majority, constants[kind, constant])
    return scores


@dataclass(frozen=True)
class Verdict:
    """Judgement of one answer."""

    row: ConclusionRow
    given: str
    """The conclusion that was compared."""
    found: str
    """`conclusion`, `text` or `nothing`, as :func:`cobra.reasoning.trace.given_conclusion` returns it."""
    match: Match | None
    """The rule by which it is right; None where it is wrong."""

    def to_dict(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        return {**asdict(self.row), "given": self.given, "found": self.found, "match": self.match}


@dataclass(frozen=True)
class ConclusionScore:
    """Scored answers of one variant."""

    verdicts: list[Verdict]
    """A verdict for each row, in their order."""
    sources: dict[str, KindScore]
    """Scores by data set, the biggest first."""

    @property
    def correct(self) -> NDArray[np.float64]:
        """(N,): 1 for every right answer, 0 for a wrong one."""
        return np.array([verdict.match is not None for verdict in self.verdicts], np.float64)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.correct.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return the counts for a JSON file; shares are fractions of 1."""
        rules = Counter(verdict.match for verdict in self.verdicts)
        found = Counter(verdict.found for verdict in self.verdicts)
        return {
            "n": len(self.verdicts),
            "accuracy": self.accuracy,
            "rules": {rule.value: rules[rule] for rule in Match},
            "found": {origin: found[origin] for origin in ("conclusion", "text", "nothing")},
            "sources": {name: score.to_dict() for name, score in self.sources.items()},
        }


def score_conclusions(rows: Sequence[ConclusionRow], answers: Sequence[str]) -> ConclusionScore:
    """Compare answers, as generated, with the right conclusions, by the rules of :mod:`cobra.reasoning.matching`.

    Raises:
        ValueError: There are not as many answers as rows.
    """
    verdicts = []
    for row, answer in zip(rows, answers, strict=True):
        given, found = given_conclusion(answer)
        verdicts.append(Verdict(row, given, found, match_conclusion(given, row.conclusion, row.question)))
    # A constant answer is the same words whatever a question lists.
    sources = score_kinds(
        (verdict.row.source, verdict.match is not None, conclusion_key(verdict.row.conclusion, ""))
        for verdict in verdicts
    )
    ordered = sorted(sources.items(), key=lambda entry: (-entry[1].n, entry[0]))
    return ConclusionScore(verdicts, dict(ordered))
