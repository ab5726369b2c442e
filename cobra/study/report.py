"""Report of a study: compares the scores of its arms, and writes the page, its figure and `study.json`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobra.study.effects import measure_effect, measure_kinds
from cobra.study.exam import CONCLUSIONS, Score
from cobra.study.figure import draw_effects
from cobra.study.page import TRAINED, Origin, render
from cobra.study.verdict import Comparison, pairs_of, verdict
from cobra.util.files import write_json, write_text

PAGE, FIGURE, RESULT = "study.md", "study.svg", "study.json"

Scores = Mapping[str, Sequence[Score]]


@dataclass(frozen=True)
class Findings:
    """Everything that a study has found."""

    scores: Scores
    """Scores of every arm's models."""
    kinds: Sequence[str]
    """Kind of each question."""
    about: Mapping[str, str]
    """Texts on what was trained and asked, by label."""
    fixed: frozenset[str]
    """Arms of one model that has no seed."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Reasons why cells gave no score, by name."""
    logged: Scores = field(default_factory=dict)
    """Scores that lmms-eval has logged, by arm."""
    origin: Origin = TRAINED
    """Where the models come from."""


def report(findings: Findings, folder: Path) -> list[str]:
    """Compare the arms, write the page, its figure and `study.json` to the folder, and return the verdict."""
    comparisons = compare(findings.scores, findings.kinds, findings.fixed)
    comparisons += compare(findings.logged, (), frozenset(arm for arm in findings.logged if arm in findings.fixed))
    left_out = dict.fromkeys(name for models in findings.logged.values() for one in models for name in one.left_out)
    about = dict(findings.about) | ({"metrics left out": ", ".join(left_out)} if left_out else {})
    counts = [len(models) for arm, models in findings.scores.items() if arm not in findings.fixed]
    questions = len(next(iter(next(iter(findings.scores.values()))[0].values.values())))
    sentences = verdict(comparisons, findings.scores, questions, min(counts, default=1))
    result: dict[str, Any] = {
        "verdict": sentences,
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "arms": {arm: [asdict(model) for model in models] for arm, models in findings.scores.items()},
        "logged": {arm: [asdict(model) for model in models] for arm, models in findings.logged.items()},
        "kinds": list(findings.kinds),
        "failed": dict(findings.failed),
        "about": about,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULT, _without_nan(result))
    is_logged = bool(findings.logged)
    write_text(folder / FIGURE, draw_effects(comparisons))
    page = render(findings.origin, sentences, FIGURE, findings.scores, comparisons, about, findings.failed, is_logged)
    write_text(folder / PAGE, page)
    return sentences


def compare(scores: Scores, kinds: Sequence[str], fixed: frozenset[str]) -> list[Comparison]:
    """Compare the pairs of arms that show one cause each, in every measure that both have.

    Args:
        scores: Scores of every arm's models.
        kinds: Kind of each question about a conclusion.
        fixed: Arms of one model that has no seed.
    """
    comparisons = []
    measures = dict.fromkeys(name for models in scores.values() for model in models for name in model.values)
    for measure in measures:
        arms = [arm for arm, models in scores.items() if all(measure in model.values for model in models)]
        for first, second, about in pairs_of(arms) if len(arms) > 1 else ():
            pair = _matrix(scores[first], measure), _matrix(scores[second], measure)
            are_fixed = (first in fixed, second in fixed)
            effect = measure_effect(*pair, are_fixed)
            by_kind = measure_kinds(*pair, kinds, are_fixed) if measure == CONCLUSIONS else {}
            lower = any(measure in model.lower_is_better for arm in (first, second) for model in scores[arm])
            comparisons.append(Comparison(first, second, about, measure, effect, by_kind, not all(are_fixed), lower))
    return comparisons


def _matrix(models: Sequence[Score], measure: str) -> NDArray[np.float64]:
    """Return the scores of an arm's models, shape (models, questions)."""
    return np.array([model.values[measure] for model in models], np.float64)


def _without_nan(value: Any) -> Any:
    """Return a value with None for every NaN, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
