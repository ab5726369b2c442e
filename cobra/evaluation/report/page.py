"""Page of the benchmark, `report.html`: no network, the pictures inside, readable without its script too."""

import json
from collections.abc import Iterable
from dataclasses import astuple
from functools import cache
from itertools import chain
from typing import NamedTuple

from jinja2 import Environment

from cobra.evaluation.data.image_sources import Pictures
from cobra.evaluation.metrics.base import SHOWN_SCALE, value
from cobra.evaluation.metrics.ptb_tokenizer import tokenize
from cobra.evaluation.metrics.significance import ALPHA, Estimate
from cobra.evaluation.report.charts import Histogram, Strip, length_histograms, strip
from cobra.evaluation.report.gallery import GALLERY_IMAGES, gallery, nearest
from cobra.evaluation.report.next_steps import next_steps
from cobra.evaluation.report.results import FLOOR_LABELS, FLOOR_NOTES, Results, score_text
from cobra.evaluation.report.story import null_sentence, story, twins
from cobra.util.charts import Axis, axis
from cobra.util.html_pages import page_templates, script_of
from cobra.util.printable import printable

# Of a caption or reference, and of a name.
_CHARACTERS = 2000
_NAME_CHARACTERS = 200
# Length of an axis at least: what is smaller than a tenth of it is shown as 0.0.
_LEAST_SPAN = 1.0


class Mark(NamedTuple):
    """A labelled line across a chart."""

    place: float
    label: str


class PlotRow(NamedTuple):
    """An interval on a chart, with its numbers."""

    first: str
    """A variant."""
    second: str
    """The variant that it is taken from; empty where there is none."""
    strip: Strip | None
    estimate: Estimate
    p_value: float | None
    is_claimed: bool


class Plot(NamedTuple):
    """Intervals in one metric on one axis."""

    metric: str
    axis: Axis
    marks: list[Mark]
    rows: list[PlotRow]


class ScoreRow(NamedTuple):
    """A line of the table of scores."""

    metric: str
    note: str
    estimates: list[Estimate | None]
    floors: list[float | None]


def render_page(results: Results, pictures: Pictures | None = None, limit: int = GALLERY_IMAGES) -> str:
    """Return the page's HTML; equal results and images give equal bytes. The rest is that of :func:`gallery`."""
    environment = _environment()
    headlines, n = results.headlines, len(results.images)
    shown = [comparison for comparison in results.comparisons if comparison.metric in results.metrics]
    differences = [_differences(results, metric) for metric in headlines]
    others = [_differences(results, metric) for metric in results.metrics if metric not in headlines]
    return environment.get_template("report.html.j2").render(
        results=results,
        n=n,
        words=results.words,
        names=list(results.variants),
        labels={name: results.label(name) for name in results.metrics},
        story=story(results),
        alpha=ALPHA,
        warnings=results.warnings,
        twins=twins(results),
        claimed=[comparison.sentence(n) for comparison in shown if comparison.is_claimed],
        unclaimed=null_sentence(shown, n),
        scores=[_scores(results, metric) for metric in headlines],
        score_rows=_score_rows(results),
        floor_labels=[FLOOR_LABELS[name] for name in results.floors],
        floor_notes=[FLOOR_NOTES[name] for name in results.floors],
        differences=[plot for plot in differences if plot.rows],
        others=[plot for plot in others if plot.rows],
        histograms=_histograms(results),
        gallery=gallery(results, pictures, limit),
        next_steps=next_steps(results),
        about=json.dumps(dict(results.about), indent=2, ensure_ascii=False),
        **script_of(environment, "report.js"),
    )


@cache
def _environment() -> Environment:
    environment = page_templates("cobra.evaluation.report")
    environment.filters |= {
        "short": lambda text: printable(text, _CHARACTERS),
        "name": lambda name: printable(str(name), _NAME_CHARACTERS),
        "score": _score,
        "difference": _difference,
        "nearest": nearest,
        "p": lambda p_value: "< 0.001" if p_value < 0.001 else f"{p_value:.3f}",
    }
    return environment


def _score(number: float | None) -> str:
    """Return a score as it is shown, with the sign that typography has for minus."""
    text = score_text(number)
    return text if text == "-" else text.replace("-", "\u2212")


def _difference(number: float) -> str:
    """Return a difference as it is shown: with its sign also above 0."""
    text = _score(number)
    return text if text in ("-", "0.0") or number < 0 else f"+{text}"


def _scores(results: Results, metric: str) -> Plot:
    """Return the scores of all variants on an axis from floor to ceiling."""
    scores = {name: estimates[metric] for name, estimates in results.estimates.items() if metric in estimates}
    known = {FLOOR_LABELS[name]: value(floor[metric]) for name, floor in results.floors.items() if metric in floor}
    on = axis([SHOWN_SCALE * number for number in (*known.values(), *_ends(scores.values()))], _LEAST_SPAN)
    rows = [PlotRow(name, "", _strip(on, estimate), estimate, None, True) for name, estimate in scores.items()]
    return Plot(metric, on, [Mark(on.position(SHOWN_SCALE * number), name) for name, number in known.items()], rows)


def _differences(results: Results, metric: str) -> Plot:
    """Return the differences of all pairs of variants on an axis that holds 0."""
    pairs = [comparison for comparison in results.comparisons if comparison.metric == metric]
    on = axis([0.0, *(SHOWN_SCALE * number for number in _ends(pair.difference for pair in pairs))], _LEAST_SPAN)
    rows = [
        PlotRow(pair.second, pair.first, _strip(on, pair.difference), pair.difference, pair.p_holm, pair.is_claimed)
        for pair in pairs
    ]
    return Plot(metric, on, [Mark(on.position(0), "")], rows)


def _ends(estimates: Iterable[Estimate]) -> list[float]:
    return list(chain.from_iterable(map(astuple, estimates)))


def _strip(on: Axis, estimate: Estimate) -> Strip | None:
    return strip(on, *(SHOWN_SCALE * number for number in (estimate.low, estimate.value, estimate.high)))


def _score_rows(results: Results) -> list[ScoreRow]:
    return [
        ScoreRow(
            metric,
            results.metric(metric).explanation,
            [estimates.get(metric) for estimates in results.estimates.values()],
            [value(floor[metric]) if metric in floor else None for floor in results.floors.values()],
        )
        for metric in results.metrics
    ]


def _histograms(results: Results) -> list[Histogram]:
    def count(texts: Iterable[str]) -> list[int]:
        return [len(tokenize(text)) for text in texts]

    references = count(text for image in results.images for text in image.references)
    return length_histograms({name: count(result.captions) for name, result in results.variants.items()}, references)
