"""Page of a study, in Markdown: the verdict, the arms, the effects by kind, and how they were measured."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cobra.study.effects import Effect
from cobra.study.exam import Score
from cobra.study.verdict import Comparison


@dataclass(frozen=True)
class Origin:
    """Where the models of a page come from."""

    title: str
    """Title of the page."""
    text: str
    """Sentences on what is known of their training."""


TRAINED = Origin(
    "Did the reasoning do it?",
    """\
Every arm is trained from the same checkpoint on the same rows in the same order, once for each seed; what differs is
the form of the answers (`--dataset.answer`).
""",
)
GIVEN = Origin(
    "Models compared",
    """\
The models were there already, and are taken for what their names say: several of one name for seeds of one arm. What
they were trained on, and from which checkpoint, is not known here.
""",
)

_METHOD = """\
All models answer the same questions greedily, with the same limit of new tokens, and a conclusion is right by the rules
of `docs/metrics.md`. An effect is the difference of two arms' means over seeds and questions; its interval and test
count the spread of questions and that of seeds, with Satterthwaite's degrees of freedom. Each comparison of two arms is
a question of its own, claimed at p < 0.05; effects by kind are corrected by Holm's method. The smallest effect is the
true difference that these numbers of questions and seeds would have claimed with a probability of 80 %.
"""
_LOGGED = """\
Measures with the name of a task in front are from logs of lmms-eval: its prompts, limits and scores.
"""


def render(
    origin: Origin,
    sentences: Sequence[str],
    figure: str,
    scores: Mapping[str, Sequence[Score]],
    comparisons: Sequence[Comparison],
    about: Mapping[str, str],
    failed: Mapping[str, str],
    is_logged: bool = False,
) -> str:
    """Return the page.

    Args:
        origin: Where the models come from.
        sentences: Its verdict.
        figure: Name of the file with the figure of the effects.
        scores: Scores of every arm's models, and of the checkpoint that all start from.
        comparisons: Effects.
        about: Texts on what was trained and asked, by label.
        failed: Cells that gave no score, and why.
        is_logged: True if some measures are from logs of lmms-eval.
    """
    parts = [f"# {origin.title}", *sentences, f"![Effects with 95 % intervals, by kind]({figure})"]
    measures = list(dict.fromkeys(name for models in scores.values() for name in models[0].values))
    head = ["arm", "models", *(f"{measure}, %, by seed" for measure in measures)]
    parts += ["## Arms", _table([*head, "valid stages, %", "tokens", "seconds"], _arms(scores, measures))]
    head = ["from", "to", "measure", "points", "95 %", "p", "smallest", "error of questions", "of seeds"]
    parts += ["## Effects", _table(head, _effects(comparisons))]
    for comparison in comparisons:
        if comparison.kinds:
            parts += [
                f"### {comparison.first} to {comparison.second}, by kind",
                _table(["kind", "points", "95 %", "p after Holm"], _kinds(comparison)),
            ]
    if failed:
        parts += ["## Arms that failed", "\n".join(_failure(name, reason) for name, reason in failed.items())]
    method = origin.text + _METHOD + _LOGGED * is_logged
    parts += ["## How it was measured", method, _table(["", ""], about.items())]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _arms(scores: Mapping[str, Sequence[Score]], measures: Sequence[str]) -> Iterator[Sequence[str]]:
    for arm, models in scores.items():
        cells = []
        for measure in measures:
            means = [100 * float(np.mean(model.values[measure])) for model in models if measure in model.values]
            each = f" ({', '.join(f'{mean:.1f}' for mean in means)})" if len(means) > 1 else ""
            cells.append(f"{np.mean(means):.1f}{each}" if means else "-")
        yield (
            *(arm, str(len(models)), *cells, _mean([model.valid for model in models], 100, 0)),
            *(_mean([model.tokens for model in models], 1, 0), _mean([model.seconds for model in models], 1, 3)),
        )


def _mean(values: Sequence[float | None], scale: float, digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{scale * float(np.mean(known)):.{digits}f}" if known else "-"


def _effects(comparisons: Sequence[Comparison]) -> Iterator[Sequence[str]]:
    for comparison in comparisons:
        effect = comparison.effect
        yield (
            *(comparison.first, comparison.second, comparison.measure, *_points(effect), _known(effect.p_value, ".2g")),
            *(_known(100 * value, ".1f") for value in (effect.smallest, effect.question_error, effect.seed_error)),
        )


def _kinds(comparison: Comparison) -> Iterator[Sequence[str]]:
    for kind, effect in comparison.kinds.items():
        yield kind, *_points(effect), f"{_known(effect.p_holm, '.2g')}{' *' if effect.is_claimed else ''}"


def _points(effect: Effect) -> tuple[str, str]:
    interval = f"{100 * effect.low:+.1f} to {100 * effect.high:+.1f}"
    return f"{100 * effect.difference:+.1f}", "-" if math.isnan(effect.low) else interval


def _known(value: float, form: str) -> str:
    """Return a number in a form of its own, NaN as a dash."""
    return "-" if math.isnan(value) else f"{value:{form}}"


def _failure(name: str, reason: str) -> str:
    """Return an item of a list: a reason's first line, and below it the others, as the end of a log, as they are."""
    first, *lines = reason.splitlines() or [""]
    return f"- {name}: {first}\n" + ("\n" + "".join(f"      {line}".rstrip() + "\n" for line in lines) if lines else "")
