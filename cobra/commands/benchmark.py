"""Score a model's captions or conclusions against human ones."""

from cobra.commands.base import Command
from cobra.evaluation.config import BenchmarkConfig
from cobra.util.help_text import Usage
from cobra.util.waiting import loading


def main(config: BenchmarkConfig) -> None:
    """Run the benchmark."""
    with loading():
        from cobra.evaluation.benchmark import benchmark
        from cobra.study.models import score_models

    if config.model:
        score_models(config)
    else:
        benchmark(config)


COMMAND = Command(
    main,
    BenchmarkConfig,
    Usage(
        "benchmark",
        (
            "runs/my-run",
            "--checkpoint runs/my-run --task llava-cot",
            "--predictions captions.json --coco_annotations captions_val2017.json",
        ),
        (
            *("checkpoint", "baseline_checkpoint", "task", "coco_annotations", "image_dir", "predictions"),
            *("output_dir", "max_images", "max_new_tokens", "batch_size", "search", "device", "dtype"),
        ),
        "checkpoint",
    ),
)
