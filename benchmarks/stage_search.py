"""Search over reasoning stages: right conclusions on held-out questions, tokens, time and memory, against greedy.

The model is the one that `make demo` fine-tunes, the questions those it holds out; other checkpoints and rows may be
given. Every way of answering sees the same images and the same prompts, and what is written is judged by the same
rules. Intervals are paired bootstraps over the questions, differences paired permutation tests against greedy. With
several seeds the accuracy is their mean on each question. Nothing is asked of the accuracies: they are what they are.
How often one of the last candidates is right, whichever was chosen, is what a scorer that knew the truth would reach.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from harness import Row, finish
from rich.console import Console

from cobra.evaluation.data.holdout_rows import ConclusionRow, read_holdout
from cobra.evaluation.metrics.base import MeanMetric, Metrics
from cobra.evaluation.metrics.conclusion_accuracy import score_conclusions
from cobra.evaluation.metrics.significance import compare_all, estimate_all
from cobra.models.load import load
from cobra.models.mamba import MambaState
from cobra.models.vlms import SEARCH_SAMPLING, CobraVLM, SearchOptions, as_turn
from cobra.reasoning.trace import extract_reasoning_trace
from cobra.util import cli
from cobra.util.images import read_rgb

DEMO = Path("runs/demo")
METRIC = "conclusion_accuracy"


@dataclass
class StageSearchBenchmark:
    """Measure search over reasoning stages against greedy decoding."""

    checkpoint: Path = DEMO / "cobra-tiny-cot"
    """Run directory of a model that was fine-tuned on four-stage answers."""
    rows: Path = DEMO / "data/questions/rows.json"
    """Held-out rows with one image each."""
    image_dir: Path | None = None
    """Folder of their images; null is `images` beside the rows."""
    beams: tuple[int, ...] = (1, 2, 4, 8)
    """Branches of each stage."""
    keep: int = 1
    """Branches kept after each stage, where there are as many."""
    scorer: str = "likelihood"
    """Rule that chooses among branches: likelihood or judgement."""
    temperature: float = 0.6
    """Temperature of sampling."""
    top_p: float = 0.9
    """Probability of the smallest set of best tokens that is sampled from."""
    max_new_tokens: int = 160
    """Tokens of an answer at most."""
    seeds: int = 3
    """Times that every search is run, with other random numbers."""
    batch_size: int = 32
    """Questions answered at once."""
    limit: int | None = None
    """Questions asked at most; null is all."""


@dataclass
class Way:
    """One way of answering, and its figures over all runs."""

    name: str
    options: SearchOptions
    correct: list[np.ndarray] = field(default_factory=list)
    """Questions (N,) of every run, 1 for a right conclusion."""
    reachable: list[float] = field(default_factory=list)
    """Share of questions with a right candidate, by run."""
    valid: int = 0
    """Answers with four stages in order, over all runs."""
    tokens: int = 0
    seconds: float = 0.0
    copied: int = 0
    """Bytes of states that were copied for branches."""
    at_once: int = 0
    """Bytes of the states of a batch's branches."""

    @property
    def metrics(self) -> Metrics:
        """The mean of the runs, by question."""
        return {METRIC: MeanMetric(np.mean(self.correct, axis=0))}


def ways(config: StageSearchBenchmark) -> list[Way]:
    """Return greedy decoding and the searches; the most branches are also given to best-of-n and to a vote."""

    def options(kind: str, beams: int) -> SearchOptions:
        return SearchOptions(
            kind,
            beams,
            replace(
                SEARCH_SAMPLING,
                temperature=config.temperature,
                top_p=config.top_p,
                max_new_tokens=config.max_new_tokens,
            ),
            keep=min(config.keep, beams),
            scorer=config.scorer,
        )

    most = max(config.beams)
    return [
        Way("greedy", options("none", 1)),
        *(Way(f"stage-beam, {beams} branches", options("stage-beam", beams)) for beams in config.beams),
        Way(f"best of {most}", options("best-of-n", most)),
        Way(f"vote of {most}", options("vote", most)),
    ]


def answer(vlm: CobraVLM, rows: Sequence[ConclusionRow], prefixes: Sequence[MambaState], way: Way, seed: int) -> None:
    """Answer all rows in one way, and add to what it came to."""
    texts: list[str] = []
    candidates: list[list[str]] = []
    for prefix in prefixes:
        batch = rows[len(texts) : len(texts) + prefix.batch_size]
        prompts = [as_turn(vlm, row.question) for row in batch]
        begin = time.perf_counter()
        seeds = [seed * len(rows) + len(texts) + place for place in range(len(batch))]
        results = vlm.search_batch(None, prompts, way.options, prefix=prefix, seeds=seeds)
        way.seconds += time.perf_counter() - begin
        texts += [result.text for result in results]
        candidates += [[candidate.text for candidate in result.candidates] for result in results]
        way.tokens += sum(result.tokens_spent for result in results)
        way.copied += sum(result.copied_bytes for result in results)
        way.at_once = max(way.at_once, sum(len(result.rounds[0]) * result.state_bytes for result in results))
    way.correct.append(score_conclusions(rows, texts).correct)
    # Where there are fewer the last one counts again.
    places = range(max(len(found) for found in candidates))
    tried = [score_conclusions(rows, [found[min(place, len(found) - 1)] for found in candidates]) for place in places]
    way.reachable.append(float(np.max([score.correct for score in tried], axis=0).mean()))
    way.valid += sum(extract_reasoning_trace(text).is_valid for text in texts)


def figures(way: Way, greedy: Way, count: int) -> list[Row]:
    """Return what one way came to, and whether it differs from greedy."""
    estimate = estimate_all({way.name: way.metrics})[way.name][METRIC]
    answers = count * len(way.correct)
    rows = [
        Row(f"{way.name}: right conclusions", 100 * estimate.value, "%"),
        Row(f"{way.name}: 95 % interval from", 100 * estimate.low, "%"),
        Row(f"{way.name}: 95 % interval to", 100 * estimate.high, "%"),
    ]
    if way is not greedy:
        [difference] = compare_all({greedy.name: greedy.metrics, way.name: way.metrics})
        rows += [
            Row(f"{way.name}: above greedy by", 100 * difference.difference.value, "points"),
            Row(f"{way.name}: 95 % interval of that from", 100 * difference.difference.low, "points"),
            Row(f"{way.name}: 95 % interval of that to", 100 * difference.difference.high, "points"),
            Row(f"{way.name}: p of the difference", difference.p_value, ""),
        ]
    return [
        *rows,
        Row(f"{way.name}: a candidate is right", 100 * float(np.mean(way.reachable)), "%"),
        Row(f"{way.name}: valid structure", 100 * way.valid / answers, "%", ">= 100"),
        Row(f"{way.name}: tokens spent on a question", way.tokens / answers, ""),
        Row(f"{way.name}: time of a question", 1000 * way.seconds / answers, "ms"),
        Row(f"{way.name}: states copied for a question", way.copied / answers / 2**20, "MiB"),
        Row(f"{way.name}: states of a batch's branches", way.at_once / 2**20, "MiB"),
    ]


def main(config: StageSearchBenchmark) -> None:
    """Measure, and print the rows."""
    if config.checkpoint == StageSearchBenchmark.checkpoint and not config.checkpoint.exists():
        finish(f"stage_search: not measured, {config.checkpoint} is not there; `make demo` makes it", [])
        return
    rows = read_holdout(config.rows).rows[: config.limit]
    image_dir = config.image_dir or config.rows.parent / "images"
    vlm = load(config.checkpoint, device="cpu")
    prefixes = []
    for start in range(0, len(rows), config.batch_size):
        images = [read_rgb(image_dir / row.image) for row in rows[start : start + config.batch_size]]
        prefixes.append(vlm.read_images(vlm.preprocess(images)))
    found = ways(config)
    console = Console(stderr=True)
    for seed in range(config.seeds):
        for way in found:
            # Without random numbers every run is the same.
            if way.options.kind != "none" or seed == 0:
                answer(vlm, rows, prefixes, way, seed)
            accuracy = 100 * float(np.mean(way.correct))
            console.print(f"seed {seed}, {way.name}: {accuracy:.1f} % of {len(rows)} right", highlight=False)
    finish(
        f"stage_search: {len(rows)} questions, {config.seeds} seeds, {config.scorer}, "
        f"temperature {config.temperature}, {torch.get_num_threads()} threads",
        [row for way in found for row in figures(way, found[0], len(rows))],
    )


if __name__ == "__main__":
    cli.run(main, StageSearchBenchmark)
