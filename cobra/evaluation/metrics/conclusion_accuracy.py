"""Conclusions on held-out LLaVA-CoT rows: how often a model's answer to a question is the right one."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobra.evaluation.data.captioned_image import CaptionedImage, check_file_name
from cobra.preprocessing.datasets.rows import PLACEHOLDER, check_rows, name_row, source_of
from cobra.reasoning.matching import Match, conclusion_key, match_conclusion
from cobra.reasoning.trace import extract_reasoning_trace
from cobra.util.errors import UserError


@dataclass(frozen=True)
class ConclusionRow:
    """A held-out row as it is asked: its first question, about its image."""

    number: int
    """Its place in the file, which no other row has: from 0 in a JSON list, the line from 1 in JSON lines."""
    row_id: Any
    """As it stands in the row: text or number, not necessarily unique."""
    image: str
    """Path below the image folder."""
    question: str
    """Without `<image>`."""
    conclusion: str
    """The right answer."""
    source: str
    """The data set that the row is from: the first folder of its image's path."""

    @property
    def captioned(self) -> CaptionedImage:
        """The row as an image that is asked about: its number is the id, the conclusion the one reference."""
        return CaptionedImage(self.number, self.image, (self.conclusion,), self.question)


@dataclass(frozen=True)
class Holdout:
    """The rows of a file that can be scored."""

    rows: list[ConclusionRow]
    without_conclusion: int
    """Rows left out because their first answer has no CONCLUSION, as multi-turn rows may."""
    without_image: int
    """Rows left out because they are of text only."""


def read_holdout(path: Path) -> Holdout:
    """Read held-out rows in LLaVA's format, as `fine_tune/prepare_llava_cot.py` leaves them beside the images.

    Args:
        path: `llava_cot_100k_holdout.json`, a JSON list or JSON lines.

    Raises:
        UserError: The file is missing, is not JSON (with the line) or not of that form (with the row), an image's path
            leads out of its folder, or no row can be scored.
    """
    if not path.is_file():
        raise UserError(
            f"The held-out rows do not exist: {path}. fine_tune/prepare_llava_cot.py writes them beside the images, as "
            "llava_cot_100k_holdout.json (its --holdout says how many)."
        )
    rows: list[ConclusionRow] = []
    without_conclusion = without_image = 0
    for number, row, _ in check_rows(path):
        turns = row["conversations"]
        conclusion = extract_reasoning_trace(turns[1]["value"]).conclusion if len(turns) > 1 else None
        if "image" not in row:
            without_image += 1
        elif not conclusion:
            without_conclusion += 1
        else:
            check_file_name(row["image"], name_row(path, number, row))
            question = turns[0]["value"].replace(PLACEHOLDER, "").strip()
            rows.append(ConclusionRow(number, row.get("id"), row["image"], question, conclusion, source_of(row)))
    if not rows:
        raise UserError(
            f"{path} has no row to score: {without_conclusion} have no CONCLUSION in their first answer, "
            f"{without_image} no image. Give rows with four-stage answers, such as llava_cot_100k_holdout.json."
        )
    return Holdout(rows, without_conclusion, without_image)


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
        return binomial_tail(self.correct, self.n, self.majority / self.n)

    def to_dict(self) -> dict[str, float]:
        """Return the numbers for a JSON file; shares are fractions of 1."""
        return {
            "n": self.n,
            "accuracy": self.accuracy,
            "majority_accuracy": self.majority / self.n,
            "p_value": self.p_value,
        }


def binomial_tail(successes: int, n: int, p: float) -> float:
    """Return the probability of at least `successes` in `n` independent trials of chance `p` (exact one-sided test)."""
    if p in (0, 1):
        return float(successes <= n * p)
    # By logarithms: the number of ways exceeds a float beyond 1,000 trials.
    ways = math.lgamma(n + 1)
    return math.fsum(
        math.exp(ways - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p))
        for k in range(successes, n + 1)
    )


@dataclass(frozen=True)
class Verdict:
    """What one answer was found to be."""

    row: ConclusionRow
    given: str
    """The conclusion that was compared."""
    found: str
    """Where it was: see :func:`given_conclusion`."""
    match: Match | None
    """The rule by which it is right; None where it is wrong."""

    def to_dict(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        return {**asdict(self.row), "given": self.given, "found": self.found, "match": self.match}


@dataclass(frozen=True)
class ConclusionScore:
    """The answers of one variant."""

    verdicts: list[Verdict]
    """Of every row, in order."""
    sources: dict[str, KindScore] = field(default_factory=dict)
    """By data set, the biggest first."""

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
            "found": {place: found[place] for place in ("conclusion", "text", "nothing")},
            "sources": {name: score.to_dict() for name, score in self.sources.items()},
        }


def given_conclusion(answer: str) -> tuple[str, str]:
    """Return what of an answer is taken for its conclusion, and where it was found.

    That is the CONCLUSION; of an answer without any stage, as a model gives that never learned them, the whole `text`;
    of one with stages but without a CONCLUSION `nothing`: the model did not come to one.
    """
    trace = extract_reasoning_trace(answer)
    if trace.conclusion:
        return trace.conclusion, "conclusion"
    return ("", "nothing") if trace.texts else (answer.strip(), "text")


def score_conclusions(rows: Sequence[ConclusionRow], answers: Sequence[str]) -> ConclusionScore:
    """Compare answers with the right conclusions, by the rules of :mod:`cobra.reasoning.matching`.

    Args:
        rows: N rows.
        answers: One for each, as generated, tags included; an empty one is wrong.

    Raises:
        ValueError: There are not as many answers as rows.
    """
    verdicts = []
    sources: dict[str, KindScore] = {}
    truths: dict[str, Counter[Hashable]] = {}
    for row, answer in zip(rows, answers, strict=True):
        given, found = given_conclusion(answer)
        match = match_conclusion(given, row.conclusion, row.question)
        verdicts.append(Verdict(row, given, found, match))
        score = sources.setdefault(row.source, KindScore())
        score.n += 1
        score.correct += match is not None
        # A constant answer is the same words whatever a question lists.
        truths.setdefault(row.source, Counter())[conclusion_key(row.conclusion, "")] += 1
    for source, counts in truths.items():
        sources[source].majority = max(counts.values())
    ordered = sorted(sources.items(), key=lambda entry: (-entry[1].n, entry[0]))
    return ConclusionScore(verdicts, dict(ordered))
