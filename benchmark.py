"""Score a model's captions against human ones: `python benchmark.py --checkpoint CHECKPOINT`."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from cobra.evaluation.config import BenchmarkConfig
from cobra.util.cli import run


def main(config: BenchmarkConfig) -> None:
    """Run the benchmark."""
    from cobra.evaluation.benchmark import benchmark

    benchmark(config)


if __name__ == "__main__":
    run(main, BenchmarkConfig)
