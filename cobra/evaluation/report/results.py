"""Results of a benchmark, and its files."""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.metrics.base import SHOWN_SCALE, Metric, Metrics, value
from cobra.evaluation.metrics.significance import (
    REPLICATES,
    Comparison,
    Estimate,
    compare_all,
    estimate_all,
    small_sample_warning,
)
from cobra.evaluation.report.words import Words
from cobra.evaluation.responses.protocol import Answer
from cobra.reasoning.trace import extract_reasoning_trace
from cobra.util.errors import UserError
from cobra.util.files import atomic_path
from cobra.util.jsonl import to_lines

if TYPE_CHECKING:
    from cobra.evaluation.responses.respond import Throughput

PAGE = "report.html"

HEADLINES = ("cider", "bleu_4", "rouge_l", "similarity_max")
"""The metrics that are looked at first."""

FLOOR_LABELS = {"shuffled": "shuffled captions", "human": "one human", "constant": "commonest answer"}
"""Captions, or answers, of known quality, with their names in tables."""

FLOOR_NOTES = {
    "shuffled": "Shuffled captions, each a human's of another image, are a floor.",
    "human": "One human's captions, scored against the other humans' of the same image, are what people reach.",
    "constant": "The commonest answer is what giving the commonest conclusion of a source every time would score.",
}
"""Explanations of them."""


@dataclass(frozen=True)
class VariantResult:
    """Captions of one variant about N images, and their scores."""

    captions: Sequence[str]
    """Texts that were scored, one for each image."""
    metrics: Metrics
    answers: Sequence[Answer] | None = None
    """Answers of a model; None for captions from a file."""


@dataclass(frozen=True)
class Results:
    """Results of a benchmark on N images."""

    images: Sequence[CaptionedImage]
    variants: Mapping[str, VariantResult]
    estimates: Mapping[str, Mapping[str, Estimate]]
    """Estimates by variant, then metric."""
    comparisons: Sequence[Comparison]
    """Comparisons of every pair of variants in every metric."""
    floors: Mapping[str, Metrics]
    """Scores of captions of known quality on the same images, by their key in :data:`FLOOR_LABELS`."""
    signature: str
    """See :func:`cobra.evaluation.report.signature.signature_line`."""
    about: Mapping[str, Any]
    """Further entries of `metrics.json`."""
    throughput: "Mapping[str, Throughput]" = field(default_factory=dict)
    """Throughput by variant; empty where none was measured."""
    overlap: str | None = None
    """Sentence on images that were trained on."""
    words: Words = field(default_factory=Words)
    """Words of the task."""

    @classmethod
    def from_variants(
        cls,
        images: Sequence[CaptionedImage],
        variants: Mapping[str, VariantResult],
        floors: Mapping[str, Metrics],
        signature: str,
        about: Mapping[str, Any],
        replicates: int = REPLICATES,
        **others: Any,
    ) -> "Results":
        """Return results with intervals and comparisons worked out; `others` are the fields with defaults."""
        metrics = {name: result.metrics for name, result in variants.items()}
        estimates, comparisons = estimate_all(metrics, replicates), compare_all(metrics, replicates)
        return cls(images, variants, estimates, comparisons, floors, signature, about, **others)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that any variant has and that say something of it, in the order in which they are shown.

        Where no answer has a stage, as no model was trained on any, those of stages would look like failures.
        """
        names = dict.fromkeys(name for result in self.variants.values() for name in result.metrics)
        return [name for name in names if self.has_stages or not self.metric(name).of_stages]

    @cached_property
    def has_stages(self) -> bool:
        """True if an answer of any variant has a stage."""
        answers = (answer for result in self.variants.values() for answer in result.answers or ())
        return any(extract_reasoning_trace(answer.raw).texts for answer in answers)

    @property
    def scale_note(self) -> str:
        """The scale on which scores are shown."""
        return f"Scores x{SHOWN_SCALE}" + ", of CIDEr too" * ("cider" in self.metrics)

    @property
    def headlines(self) -> list[str]:
        """Names of the metrics that are looked at first: those of :data:`HEADLINES`, else the first of all."""
        metrics = self.metrics
        return [name for name in HEADLINES if name in metrics] or metrics[:1]

    @property
    def warnings(self) -> list[str]:
        """Sentences that a reader of the scores must know."""
        small = small_sample_warning(len(self.images), self.words.count, [self.label(name) for name in self.metrics])
        metrics = [(variant, metric) for variant, own in self.variants.items() for metric in own.metrics.values()]
        warnings = [f"{variant}: {metric.warning}" for variant, metric in metrics if metric.warning]
        return list(dict.fromkeys([*([small] if small else []), *warnings]))

    def metric(self, name: str) -> Metric:
        """Return a metric of the first variant that has it."""
        return next(result.metrics[name] for result in self.variants.values() if name in result.metrics)

    def label(self, name: str) -> str:
        """Return what people call a metric."""
        return self.metric(name).label or name


def main_pair(variants: Sequence[str]) -> tuple[str, str] | None:
    """Return the two variants that are looked at first: without and with fine-tuning, else the first two, if any."""
    pairs = list(combinations(variants, 2))
    return next((pair for pair in pairs if pair == ("baseline", "finetuned")), pairs[0] if pairs else None)


def judge(result: VariantResult, index: int) -> bool | None:
    """Return True for a right answer of a variant, False for a wrong one, and None where no metric judges them."""
    judges = (metric for metric in result.metrics.values() if metric.judges)
    return next((bool(metric.per_image[index]) for metric in judges), None)


def score_text(score: float | None) -> str:
    """Return a score as it is shown, x100; one that rounds to 0 has no sign, and `-` stands for one not known."""
    if score is None or not math.isfinite(score):
        return "-"
    text = f"{SHOWN_SCALE * score:.1f}"
    return "0.0" if text == "-0.0" else text


def prepare_output(output_dir: Path, variants: Sequence[str]) -> None:
    """Make the output folder and prove that it can be written to.

    Raises:
        UserError: It cannot, or it holds answers of variants that this benchmark does not make and that would then lie
            beside another benchmark's metrics.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        problem = f"cannot be written to: {error.strerror}. Give another one."
        raise UserError(f"--output_dir {output_dir} {problem}") from error
    stale = sorted({path.stem for path in _predictions_file(output_dir, "").parent.glob("*.json")} - set(variants))
    if stale:
        raise UserError(
            f"{output_dir} holds the results of another benchmark, with the variants {', '.join(stale)}, which this "
            "one does not make: give another --output_dir, or remove that folder"
        )


def write_results(
    output_dir: Path, results: Results, page: str | None = None, files: Mapping[str, str] | None = None
) -> None:
    """Write the files of a benchmark, all of them or none.

    They are `metrics.json`, `predictions/<variant>.json` (COCO's results format), `answers/<variant>.jsonl` of models,
    `report.html` with the page, and `files`: texts of further ones, by their path in the folder.
    """
    texts = {output_dir / "metrics.json": json.dumps(metrics_json(results), indent=2, ensure_ascii=False) + "\n"}
    for variant, result in results.variants.items():
        pairs = zip(results.images, result.captions, strict=True)
        rows = [{"image_id": image.image_id, "caption": caption} for image, caption in pairs]
        texts[_predictions_file(output_dir, variant)] = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        if result.answers is not None:
            answers = to_lines(map(asdict, result.answers), ensure_ascii=False)
            texts[output_dir / "answers" / f"{variant}.jsonl"] = answers
    texts |= {output_dir / name: text for name, text in (files or {}).items()}
    if page is not None:
        texts[output_dir / PAGE] = page
    # The files take their places together, once the last of them is written.
    with ExitStack() as stack:
        for path, text in texts.items():
            stack.enter_context(atomic_path(path)).write_text(text, encoding="utf-8")


def metrics_json(results: Results) -> dict[str, Any]:
    """Return what `metrics.json` holds: fractions, CIDEr on its own scale of 0 to 10; what is not known is null."""
    extra: dict[str, Any] = {}
    if results.throughput:
        rates = ("captions_per_second", "tokens_per_second")
        extra["throughput"] = {
            name: asdict(speed) | {rate: getattr(speed, rate) for rate in rates}
            for name, speed in results.throughput.items()
        }
    if results.overlap is not None:
        extra["overlap_words"] = results.overlap
    return {
        "n": len(results.images),
        "warnings": results.warnings,
        "signature": results.signature,
        "variants": {
            name: {metric: _estimate_json(estimate) for metric, estimate in estimates.items()}
            for name, estimates in results.estimates.items()
        },
        "comparisons": [
            {
                **{name: getattr(comparison, name) for name in ("metric", "first", "second")},
                "difference": _estimate_json(comparison.difference),
                "p_value": comparison.p_value,
                "p_holm": comparison.p_holm,
                "claimed": comparison.is_claimed,
            }
            for comparison in results.comparisons
        ],
        "floors": {
            floor: {name: {"value": _known(value(metric))} for name, metric in metrics.items()}
            for floor, metrics in results.floors.items()
        },
        **extra,
        **results.about,
    }


def _estimate_json(estimate: Estimate) -> dict[str, float | None]:
    return {name: _known(number) for name, number in asdict(estimate).items()}


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _predictions_file(output_dir: Path, variant: str) -> Path:
    return output_dir / "predictions" / f"{variant}.json"
