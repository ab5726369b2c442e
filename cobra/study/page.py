"""Page of a study, in Markdown: the verdict, the arms, the effects by kind, and how they were measured."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from cobra.study.effects import Effect
from cobra.study.exam import Score
from cobra.study.verdict import Comparison

_METHOD = """\
Every arm is trained from the same checkpoint on the same rows in the same order, once for each seed; what differs is
the form of the answers (`--dataset.answer`). All models answer the same questions greedily, with the same limit of new
tokens, and a conclusion is right by the rules of [metrics](metrics.md). An effect is the difference of two arms' means
over seeds and questions; its interval and test count the spread of questions and that of seeds, with Satterthwaite's
degrees of freedom. Each comparison of two arms is a question of its own, claimed at p < 0.05; effects by kind are
corrected by Holm's method. The smallest effect is the true difference that these numbers of questions and seeds would
have claimed with a probability of 80 %.
"""


def render(
    sentences: Sequence[str],
    scores: Mapping[str, Sequence[Score]],
    comparisons: Sequence[Comparison],
    about: Mapping[str, str],
    failed: Mapping[str, str],
) -> str:
    """Return the page.

    Args:
        sentences: Its verdict.
        scores: Scores of every arm's models, and of the checkpoint that all start from.
        comparisons: Effects.
        about: Texts on what was trained and asked, by label.
        failed: Cells that gave no score, and why.
    """
    parts = ["# Did the reasoning do it?", *sentences]
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
        parts += [
            "## Arms that failed",
            "\n".join(f"- {name}: {reason.splitlines()[0]}" for name, reason in failed.items()),
        ]
    parts += ["## How it was measured", _METHOD, _table(["", ""], about.items())]
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
            *(comparison.first, comparison.second, comparison.measure, *_points(effect), f"{effect.p_value:.2g}"),
            *(f"{100 * value:.1f}" for value in (effect.smallest, effect.question_error, effect.seed_error)),
        )


def _kinds(comparison: Comparison) -> Iterator[Sequence[str]]:
    for kind, effect in comparison.kinds.items():
        yield kind, *_points(effect), f"{effect.p_holm:.2g}{' *' if effect.is_claimed else ''}"


def _points(effect: Effect) -> tuple[str, str]:
    interval = f"{100 * effect.low:+.1f} to {100 * effect.high:+.1f}"
    return f"{100 * effect.difference:+.1f}", interval
