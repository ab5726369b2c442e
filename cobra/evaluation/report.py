"""What a benchmark leaves: a table and sample answers on the screen, and its files."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cobra.evaluation.coco import CaptionedImage
from cobra.evaluation.protocol import Answer
from cobra.util.errors import UserError
from cobra.util.files import atomic_path

Metrics = dict[str, float]
VARIANTS = ("baseline", "baseline+scratchpad", "finetuned", "finetuned+scratchpad", "predictions")

_ROWS = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "raw_bleu_4": "BLEU-4, tags and all",
    "similarity_mean": "similarity, mean",
    "similarity_max": "similarity, closest",
    "length_ratio": "length / reference",
    "valid_structure": "four valid stages",
    "conclusion_fallbacks": "without CONCLUSION",
}
# Half of BLEU-4's 95 % interval on COCO, x100, is about this over the root of n: 3.7 at 100 images, 1.2 at 1,000.
_HALF_WIDTH = 37
_SMALL_N = 1000
_SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class VariantResult:
    """One row of the table."""

    captions: Sequence[str]
    """What was scored, one for each image."""
    metrics: Metrics
    answers: Sequence[Answer] | None = None
    """What a model answered; None for captions out of a file."""


def print_results(console: Console, images: Sequence[CaptionedImage], results: Mapping[str, VariantResult]) -> None:
    """Print the table of all variants, fractions x100, with a word on its precision."""
    n = len(images)
    table = Table(title=f"Captions of {n} image{'s' * (n > 1)}, scores x100", title_justify="left")
    table.add_column("")
    for variant in results:
        table.add_column(variant.replace("+", "\n+"), justify="right")
    for metric, label in _ROWS.items():
        values = [result.metrics.get(metric) for result in results.values()]
        if any(value is not None for value in values):
            table.add_row(label, *("-" if value is None else f"{100 * value:.1f}" for value in values))
    console.print(table)
    if n < _SMALL_N:
        console.print(
            f"With so few images BLEU-4 is known to about +-{_HALF_WIDTH / n**0.5:.1f} (95 %, measured on COCO): "
            "smaller differences may be chance.",
            highlight=False,
        )


def print_samples(
    console: Console, images: Sequence[CaptionedImage], results: Mapping[str, VariantResult], count: int = 3
) -> None:
    """Print the first few images' captions: one human's, and what each variant was scored on."""
    for index, image in enumerate(images[:count]):
        console.print(f"\n[bold]{escape(image.file_name)}[/bold]")
        for name, text in (("human", image.references[0]), *((name, r.captions[index]) for name, r in results.items())):
            console.print(f"  {name}: {escape(_shown(text))}", highlight=False)


def _shown(text: str) -> str:
    """Return the beginning of a text, without characters that would move the cursor."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    return clean if len(clean) <= _SHOWN_CHARACTERS else f"{clean[:_SHOWN_CHARACTERS]}..."


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
        raise UserError(
            f"--output_dir {output_dir} cannot be written to: {error.strerror}. Give another one."
        ) from error
    stale = [name for name in VARIANTS if name not in variants and _predictions_file(output_dir, name).exists()]
    if stale:
        raise UserError(
            f"{output_dir} holds the results of another benchmark, with the variants {', '.join(stale)}, which this "
            "one does not make: give another --output_dir, or remove that folder"
        )


def write_results(
    output_dir: Path, images: Sequence[CaptionedImage], results: Mapping[str, VariantResult], about: Mapping[str, Any]
) -> None:
    """Write `metrics.json`, `predictions/<variant>.json` and `answers/<variant>.jsonl`: all of them or none.

    Args:
        output_dir: Their folder.
        images: What was captioned.
        results: By variant.
        about: Further entries of `metrics.json`.
    """
    metrics = {
        "n": len(images),
        "variants": {
            variant: {name: {"value": value} for name, value in result.metrics.items()}
            for variant, result in results.items()
        },
        **about,
    }
    texts = {output_dir / "metrics.json": json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"}
    for variant, result in results.items():
        rows = [
            {"image_id": image.image_id, "caption": caption}
            for image, caption in zip(images, result.captions, strict=True)
        ]
        texts[_predictions_file(output_dir, variant)] = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        if result.answers is not None:
            lines = [json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in result.answers]
            texts[output_dir / "answers" / f"{variant}.jsonl"] = "".join(lines)
    # The files take their places together, once the last of them is written.
    with ExitStack() as stack:
        for path, text in texts.items():
            stack.enter_context(atomic_path(path)).write_text(text, encoding="utf-8")


def _predictions_file(output_dir: Path, variant: str) -> Path:
    return output_dir / "predictions" / f"{variant}.json"
