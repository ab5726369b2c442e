"""Conclusions: whether a model's answers to the questions of held-out LLaVA-CoT rows are right."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cobra.evaluation.config import BenchmarkConfig
from cobra.evaluation.data.coco import sample
from cobra.evaluation.data.holdout_rows import Holdout, read_holdout
from cobra.evaluation.data.image_sources import PictureFolder, check_present
from cobra.evaluation.metrics.base import MeanMetric, Metrics
from cobra.evaluation.metrics.caption_scorer import valid_structure
from cobra.evaluation.metrics.conclusion_accuracy import ConclusionScore, score_conclusions
from cobra.evaluation.report.console import print_results, print_samples
from cobra.evaluation.report.page import render_page
from cobra.evaluation.report.results import (
    Results,
    VariantResult,
    prepare_output,
    write_results,
)
from cobra.evaluation.responses.models_under_test import ModelsUnderTest
from cobra.evaluation.responses.protocol import VARIANTS, Answer, Protocol
from cobra.evaluation.tasks.base import LIST_FILE, SAMPLE_SEED, announce, answer_all, describe, sign
from cobra.util.distributed import World
from cobra.util.files import sha256_file, write_text
from cobra.util.jsonl import to_lines

DEFAULT_ROWS = Path("data/download/llava-cot-100k/llava_cot_100k_holdout.json")
"""What `fine_tune/prepare_llava_cot.py --dataset_root data` leaves."""

_LABEL = "right conclusions"


def benchmark_conclusions(config: BenchmarkConfig, world: World, console: Console) -> Results | None:
    """Run the task; see :func:`cobra.evaluation.benchmark.benchmark`."""
    path = config.llava_cot_annotations or DEFAULT_ROWS
    holdout = read_holdout(path)
    images = sample([row.captioned for row in holdout.rows], config.max_images, SAMPLE_SEED)
    pictures = PictureFolder(config.image_dir or path.parent)
    check_present(images, pictures, config.output_dir / LIST_FILE)
    models = ModelsUnderTest(config, world.device)
    names = [name for name in VARIANTS if name.split("+")[0] in models.entries]
    world.on_main(lambda: prepare_output(config.output_dir, names))
    digest = sha256_file(path)
    protocol = Protocol(
        "",
        config.max_new_tokens,
        config.batch_size,
        questions_sha256=digest,
        search=config.search,
        beams=config.beams,
    )
    announce(console, protocol, models)
    _announce_rows(console, path, holdout, len(images))
    answered = answer_all(models, images, pictures, protocol, config.output_dir, world, console)
    if not world.is_main:
        return None
    chosen = {image.image_id for image in images}
    rows = [row for row in holdout.rows if row.number in chosen]
    scores = {name: score_conclusions(rows, [answer.raw for answer in answered.answers[name]]) for name in names}
    variants = {name: _result(answered.answers[name], score) for name, score in scores.items()}
    about = {
        "annotations": {"path": str(path), "form": "LLaVA-CoT rows", "sha256": digest},
        "conclusions": {name: score.to_dict() for name, score in scores.items()},
        "unreadable": answered.unreadable,
        **describe(models, protocol, config.max_images),
    }
    floors = {"constant": _constant(scores[names[0]])}
    signature = sign(len(images), about, "conclusion-rules", None)
    results = Results.of(images, variants, floors, signature, about, throughput=answered.throughput)
    write_results(config.output_dir, results, render_page(results, pictures))
    _write_verdicts(config.output_dir, scores)
    print_results(console, results)
    _print_sources(console, scores)
    print_samples(console, results)
    return results


def _announce_rows(console: Console, path: Path, holdout: Holdout, asked: int) -> None:
    left_out = ""
    if holdout.without_conclusion or holdout.without_image:
        left_out = (
            f"; {holdout.without_conclusion:,} rows without a CONCLUSION and {holdout.without_image:,} without an "
            "image are left out"
        )
    console.print(
        escape(f"{asked:,} of {len(holdout.rows):,} questions of {path}{left_out}"), highlight=False, soft_wrap=True
    )


def _result(answers: list[Answer], score: ConclusionScore) -> VariantResult:
    metrics: Metrics = {
        "conclusion_accuracy": MeanMetric(score.correct, _LABEL),
        "valid_structure": valid_structure(answers),
    }
    return VariantResult([verdict.given for verdict in score.verdicts], metrics, answers)


def _constant(score: ConclusionScore) -> Metrics:
    """Return the score of always giving the commonest answer of the row's source."""
    shares = {name: kind.majority / kind.n for name, kind in score.sources.items()}
    return {
        "conclusion_accuracy": MeanMetric(np.array([shares[verdict.row.source] for verdict in score.verdicts]), _LABEL)
    }


def _write_verdicts(output_dir: Path, scores: dict[str, ConclusionScore]) -> None:
    """Write `verdicts/<variant>.jsonl`: what every answer was found to be, a row a line."""
    for name, score in scores.items():
        lines = to_lines((verdict.to_dict() for verdict in score.verdicts), ensure_ascii=False)
        write_text(output_dir / "verdicts" / f"{name}.jsonl", lines)


def _print_sources(console: Console, scores: dict[str, ConclusionScore]) -> None:
    """Print the share of right conclusions by the data set that rows are from."""
    table = Table(title="Right conclusions by source, %", title_justify="left")
    table.add_column("source")
    for column in ("n", *(name.replace("+", "\n+") for name in scores), "commonest\nanswer"):
        table.add_column(column, justify="right")
    first: dict[str, Any] = next(iter(scores.values())).sources
    for source, kind in first.items():
        shares = [score.sources[source].accuracy for score in scores.values()]
        cells = [f"{100 * share:.1f}" for share in (*shares, kind.majority / kind.n)]
        table.add_row(escape(source), str(kind.n), *cells)
    console.print(table)
