"""Gallery of the page: chooses its images, and the values by which the page's script sorts and filters them."""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_sources import Pictures
from cobra.evaluation.metrics.base import SHOWN_SCALE
from cobra.evaluation.metrics.ptb_tokenizer import tokenize
from cobra.evaluation.metrics.rouge import rouge_l
from cobra.evaluation.report.results import Results, VariantResult, judge, main_pair
from cobra.reasoning.trace import ReasoningTrace, extract_reasoning_trace
from cobra.util.html_pages import Thumbnail, thumbnail

# Images on the page: with their pictures they take some 4 MB.
GALLERY_IMAGES = 200
FEATURED_IMAGES = 6
# Worst and best cases that are named above the gallery.
_EXTREMES = 5
_SEED = 7


class GalleryAnswer(NamedTuple):
    """Caption of one variant about an image, with its score."""

    variant: str
    caption: str
    """Text that was scored."""
    source: str
    """Part of the answer that holds it; empty where no model answered."""
    value: float
    """Score in the metric that the page begins with."""
    verdict: bool | None
    """True for a right answer, False for a wrong one; None where no metric judges them."""
    raw: str
    """The answer as generated; empty where the caption is all of it."""
    analysis: str
    """Text of a scratchpad's first pass; empty without one."""
    problem: str
    """Reason why the image could not be read; empty where it could."""
    trace: ReasoningTrace
    analysis_trace: ReasoningTrace


class Card(NamedTuple):
    """An image with its references and all variants' answers."""

    number: int
    """Number of the image in the data, from 1."""
    image: CaptionedImage
    picture: Thumbnail | str | None
    answers: list[GalleryAnswer]
    ranked: float
    """Number that ranks cases: the difference of the main pair, or the only variant's value."""


@dataclass(frozen=True)
class Gallery:
    """The cards, and what is said about them."""

    metric: str
    """That images are chosen by, and that the page begins with."""
    pair: tuple[str, str] | None
    """The variants that the page begins with; None where there is one."""
    cards: list[Card]
    highest: list[Card]
    """The best cases, the best first."""
    lowest: list[Card]
    """The worst cases, the worst first."""
    featured: list[tuple[str, Card]]
    """The few cards that the page begins with, each with the reason why it is among them."""
    data: dict[str, Any]
    """For the script: `metrics`, `values` by metric and variant as the cards stand, and what was `asked` about."""


def gallery(results: Results, pictures: Pictures | None, limit: int = GALLERY_IMAGES) -> Gallery:
    """Return the gallery of a benchmark, `limit` cards at most (see :func:`choose`); pictures of None are left out."""
    metrics = [name for name in results.metrics if all(name in each.metrics for each in results.variants.values())]
    metric = next(name for name in (*results.headlines, *metrics) if name in metrics)
    values = {name: result.metrics[metric].per_image for name, result in results.variants.items()}
    pair = main_pair(list(values))
    ranked = values[pair[1]] - values[pair[0]] if pair else next(iter(values.values()))

    def card(index: int) -> Card:
        image = results.images[index]
        answers = [_answer(name, result, index, values[name][index]) for name, result in results.variants.items()]
        return Card(index + 1, image, _picture(image, pictures), answers, float(ranked[index]))

    chosen = choose(values, limit)
    cards = list(map(card, chosen))
    known = sorted((card for card in cards if math.isfinite(card.ranked)), key=lambda card: card.ranked)
    featured = [(why, card(index)) for index, why in _feature(ranked, pair is not None).items()]
    data = _data(results.variants, metrics, chosen, results.words.asked)
    return Gallery(metric, pair, cards, known[: -_EXTREMES - 1 : -1], known[:_EXTREMES], featured, data)


def _feature(ranked: NDArray[np.float64], is_difference: bool) -> dict[int, str]:
    """Return the images to begin with and why: two of the best, two of the worst, the rest drawn, always the same."""
    order = [int(index) for index in np.argsort(ranked, kind="stable") if math.isfinite(ranked[index])]
    best, worst = order[:-3:-1], order[:2]
    if is_difference:
        best, worst = [i for i in best if ranked[i] > 0], [i for i in worst if ranked[i] < 0]
    reasons = ("among the largest losses", "among the largest gains") if is_difference else ("low score", "high score")
    featured = dict.fromkeys(worst, reasons[0]) | dict.fromkeys(best, reasons[1])
    rest = [index for index in range(len(ranked)) if index not in featured]
    drawn = random.Random(_SEED).sample(rest, min(FEATURED_IMAGES - len(featured), len(rest)))
    return dict.fromkeys(best, reasons[1]) | dict.fromkeys(worst, reasons[0]) | dict.fromkeys(drawn, "drawn at random")


def nearest(caption: str, references: Sequence[str]) -> tuple[str, float]:
    """Return the reference that a caption is nearest to by ROUGE-L, and that score."""
    tokens = [[tokenize(reference)] for reference in references]
    scores = rouge_l([tokenize(caption)] * len(references), tokens)
    return references[int(np.argmax(scores))], float(scores.max())


def choose(values: Mapping[str, NDArray[np.float64]], limit: int) -> list[int]:
    """Return the images that are shown, in the order of the data.

    All of them where they are no more than `limit`. Otherwise two thirds of it are those on which two variants differ
    most by their (N,) values, every pair and both directions taking turns (with one variant: its highest and lowest
    values); the rest is drawn at random, always the same.
    """
    scores = list(values.values())
    n = len(scores[0])
    if n <= limit:
        return list(range(n))
    rankings = [second - first for first, second in itertools.combinations(scores, 2)] or scores
    # An unknown value is no extreme.
    orders = [np.argsort(np.nan_to_num(sign * ranking), kind="stable") for ranking in rankings for sign in (-1, 1)]
    chosen: set[int] = set()
    for turn in zip(*orders, strict=True):
        chosen.update(index for index in map(int, turn) if len(chosen) < limit * 2 // 3)
    rest = [index for index in range(n) if index not in chosen]
    return sorted(chosen.union(random.Random(_SEED).sample(rest, limit - len(chosen))))


def _picture(image: CaptionedImage, pictures: Pictures | None) -> Thumbnail | str | None:
    if pictures is None:
        return None
    file = pictures.file(image)
    return "The picture is not there." if file is None else thumbnail(file)


def _answer(variant: str, result: VariantResult, index: int, value: float) -> GalleryAnswer:
    caption, source, raw, analysis, problem = result.captions[index], "", "", "", ""
    if result.answers is not None:
        answer = result.answers[index]
        source, analysis, problem = answer.source, answer.analysis or "", answer.problem or ""
        raw = "" if answer.raw.strip() == caption.strip() else answer.raw
    traces = map(extract_reasoning_trace, (raw, analysis))
    return GalleryAnswer(variant, caption, source, float(value), judge(result, index), raw, analysis, problem, *traces)


def _data(
    variants: Mapping[str, VariantResult], metrics: Sequence[str], chosen: Sequence[int], asked: str
) -> dict[str, Any]:
    """Return the script's numbers, scaled as they are shown; what is not known is null."""

    def shown(scores: NDArray[np.float64]) -> list[float | None]:
        numbers = (SHOWN_SCALE * scores[list(chosen)]).tolist()
        return [round(number, 4) if math.isfinite(number) else None for number in numbers]

    values = {
        metric: {name: shown(result.metrics[metric].per_image) for name, result in variants.items()}
        for metric in metrics
    }
    return {"metrics": list(metrics), "values": values, "asked": asked}
