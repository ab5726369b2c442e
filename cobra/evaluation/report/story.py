"""Story of a benchmark, in at most three sentences: what was compared, what changed, what did not."""

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from cobra.evaluation.metrics.significance import ALPHA, Comparison
from cobra.evaluation.report.results import Results, VariantResult, main_pair, score_text
from cobra.evaluation.report.words import join
from cobra.reasoning.trace import STAGE_TAG
from cobra.util.numbers import percent

_SCRATCHPAD = "+scratchpad"
_PREDICTIONS = "predictions"


def story(results: Results) -> list[str]:
    """Return the sentences."""
    sentences = [_compared(results), _changed(results), null_sentence(told(results), len(results.images))]
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences if sentence]


def _compared(results: Results) -> str:
    """Say who the variants are, and what they were asked."""
    words, n, names = results.words, len(results.images), list(results.variants)
    whose = [f"{role} is {entry['checkpoint']}" for role, entry in results.about.get("checkpoints", {}).items()]
    if not whose:
        verb = "was" if len(names) == 1 and names != [_PREDICTIONS] else "were"
        return f"{join(names)} {verb} scored on {words.count(n)}"
    if _PREDICTIONS in names:
        whose.append(f"predictions are those of {results.about['predictions']['path']}")
    twice = ", at once and after a scratchpad" if any(_SCRATCHPAD in name for name in names) else ""
    if len(whose) == 1:
        return f"{whose[0]}; it {words.verb} {words.count(n)}{twice}"
    return f"{join(whose)}; each {words.verb} the same {words.count(n)}{twice}"


def _changed(results: Results) -> str:
    """Say what of the main pair may be claimed to differ, and how long its answers are."""
    pair = main_pair(list(results.variants))
    if pair is None:
        return ""
    claimed = [one for one in told(results) if (one.first, one.second) == pair and one.is_claimed]
    parts = [_moved(results, one) for one in claimed]
    if parts:
        each = " each" * (len(parts) > 1)
        parts[-1] += f" (p < {ALPHA:g}{each} after Holm)"
    lengths = [_mean_words(results.variants[name]) for name in pair]
    before, after = (f"{length:,.0f}" for length in lengths)
    if before != after:
        verb = "grew" if lengths[0] < lengths[1] else "shrank"
        parts.append(f"answers {verb} from {before} to {after} words")
    return f"from {pair[0]} to {pair[1]}, {join(parts)}" if parts else ""


def _moved(results: Results, comparison: Comparison) -> str:
    """Return `CIDEr rose from 40.0 to 52.1`, of a share `right conclusions rose from 17 to 58 %`."""
    before, after = (results.estimates[name][comparison.metric].value for name in (comparison.first, comparison.second))
    verb, share = "rose" if before < after else "fell", results.metric(comparison.metric).share
    if share:
        return f"{share} {verb} from {percent(before, 0)} to {percent(after, 0)} %"
    return f"{results.label(comparison.metric)} {verb} from {score_text(before)} to {score_text(after)}"


def _mean_words(result: VariantResult) -> float:
    """Return the mean number of words in a variant's texts as written, without tags."""
    texts = result.captions if result.answers is None else [answer.raw for answer in result.answers]
    return float(np.mean([len(STAGE_TAG.sub(" ", text).split()) for text in texts]))


def told(results: Results) -> list[Comparison]:
    """Return the comparisons that the story is made of.

    They are those of the main pair in the headline metrics and in all shares, and in the first headline metric those of
    each model without and with its scratchpad. Variants that answered the same are no news: see :func:`twins`.
    """
    names, headlines = list(results.variants), results.headlines
    pair, equal = main_pair(names), equal_pairs(results)
    if pair is None:
        return []
    metrics = dict.fromkeys([*headlines, *(name for name in results.metrics if results.metric(name).share)])
    pairs = [pair, *((name, name + _SCRATCHPAD) for name in names if name + _SCRATCHPAD in names)]
    wanted = {(name, *of) for name in metrics for of in (pairs if name == headlines[0] else [pair]) if of not in equal}
    chosen = [one for one in results.comparisons if (one.metric, one.first, one.second) in wanted]
    order = list(metrics)
    return sorted(chosen, key=lambda one: (pairs.index((one.first, one.second)), order.index(one.metric)))


def findings(results: Results) -> list[str]:
    """Return in words what may be claimed beside the main pair."""
    pair, n = main_pair(list(results.variants)), len(results.images)
    return [one.sentence(n) for one in told(results) if (one.first, one.second) != pair and one.is_claimed]


def null_sentence(comparisons: Iterable[Comparison], n: int) -> str:
    """Name in one sentence all comparisons of n images of which nothing can be claimed; empty where there are none."""
    labels: dict[str, list[str]] = {}
    for one in comparisons:
        if not one.is_claimed:
            labels.setdefault(f"between {one.first} and {one.second}", []).append(one.label or one.metric)
    pairs: dict[str, list[str]] = {}
    for between, names in labels.items():
        pairs.setdefault(join(names, "or"), []).append(between)
    parts = [f"{join(between, 'or')} in {names}" for names, between in pairs.items()]
    return f"no difference can be claimed at n = {n:,} {'; nor '.join(parts)}" if parts else ""


def equal_pairs(results: Results) -> list[tuple[str, str]]:
    """Return the pairs of variants whose scored texts are the same, every one of them."""
    texts = {name: list(result.captions) for name, result in results.variants.items()}
    return [pair for pair in combinations(texts, 2) if texts[pair[0]] == texts[pair[1]]]


def twins(results: Results) -> list[str]:
    """Return a sentence on each variant that answered as an earlier one did, with the reason where it is known."""
    sentences, seen = [], set[str]()
    for first, second in equal_pairs(results):
        if second not in seen:
            seen.add(second)
            reason = _why_equal(results, first, second)
            answers = f"gave the same {results.words.answer}s, word for word"
            sentences.append(f"{first} and {second} {answers}{': ' * bool(reason)}{reason}.")
    return sentences


def _why_equal(results: Results, first: str, second: str) -> str:
    checkpoints = results.about.get("checkpoints", {})
    if first in checkpoints and second in checkpoints:
        same = checkpoints[first]["sha256"] == checkpoints[second]["sha256"]
        return "their weights are the same" if same else ""
    answers = results.variants[second].answers
    if second != first + _SCRATCHPAD or not answers:
        return ""
    analyses = [(answer.analysis or "").strip() for answer in answers]
    if not any(analyses):
        return "the first pass wrote nothing, so the second was asked as the other was"
    firsts: Sequence[str] = [answer.raw.strip() for answer in results.variants[first].answers or ()]
    if all(raw.startswith(analysis) for raw, analysis in zip(firsts, analyses, strict=True)):
        return "the first pass writes what the model writes before its CONCLUSION anyway"
    return "reading what the first pass wrote changed nothing"
