"""Adapters over quantised weights against adapters over whole ones: right conclusions on the demo's held-out questions.

The demonstration's fine-tune (`make demo` leaves its data) is run with LoRA over fp32, nf4 and int8, several seeds of
each. `cobra-tiny` has never seen the tags of the stages, and adapters leave the embedding as it is, so all runs start
from one short fine-tune without adapters. They answer greedily once the adapters are merged; differences are paired by
seed.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from harness import Row, finish

from cobra.demo.accuracy import KindScore, answer_rows, score_answers
from cobra.models.load import load
from cobra.training.config import PretrainConfig
from cobra.training.pretrain import pretrain
from cobra.util import cli


@dataclass
class QuantizedLoraBenchmark:
    """Measure what quantised weights under adapters cost."""

    demo: Path = Path("runs/demo")
    """Folder of a finished demonstration, with its data."""
    kinds: tuple[str, ...] = ("none", "nf4", "int8")
    """Weights under the adapters; the first is compared with."""
    rank: int = 16
    """Rank of the adapters."""
    start_steps: int = 100
    """Steps without adapters, after which all runs start."""
    steps: int = 500
    """Steps of each fine-tune with adapters."""
    seeds: int = 3
    """Fine-tunes of each kind."""


def fine_tune(config: QuantizedLoraBenchmark, start: str, steps: int, folder: Path, lora: Sequence[str] = ()) -> Path:
    """Fine-tune on the demo's rows from a model or run; return the run directory, which has the name of the folder."""
    arguments = [
        *("--dataset.type", "llava-cot-100k", "--dataset.dataset_root_dir", str(config.demo / "data")),
        *("--model.type", "cobra-tiny", "--pretrained_checkpoint", start, "--device", "cpu"),
        *("--model.finetune_max_steps", str(steps), "--model.finetune_learning_rate", "0.002"),
        *("--model.finetune_global_batch_size", "32", "--model.finetune_per_device_batch_size", "16"),
        *("--dataset.holdout_components", "[none.json,none]", "--page", "false"),
        *("--run_root_dir", str(folder.parent), "--run_id", folder.name, *lora),
    ]
    return pretrain(cli.parse(PretrainConfig, arguments))


def measure_answers(model: str, rows: list[dict[str, Any]], images: Path) -> KindScore:
    """Return the score of a model's answers to all questions."""
    return score_answers(rows, answer_rows(load(model, device="cpu"), rows, images)).overall


def measure(config: QuantizedLoraBenchmark) -> dict[str, list[tuple[float, float]]]:
    """Return the share of right conclusions and the seconds of training of every run, by kind."""
    questions = config.demo / "data" / "questions"
    rows = json.loads((questions / "rows.json").read_text())
    runs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in config.kinds}
    with TemporaryDirectory() as name:
        folder = Path(name)
        begun = str(fine_tune(config, "cobra-tiny", config.start_steps, folder / "start"))
        score = measure_answers(begun, rows, questions / "images")
        print(f"start: {score.correct} of {score.n} right", file=sys.stderr, flush=True)
        for seed in range(1, config.seeds + 1):
            for kind in config.kinds:
                start = time.perf_counter()
                lora = ["--seed", str(seed), "--lora.rank", str(config.rank)]
                lora += [] if kind == "none" else ["--lora.quantize", kind]
                run_dir = fine_tune(config, begun, config.steps, folder / f"{kind}-{seed}", lora)
                seconds = time.perf_counter() - start
                score = measure_answers(str(run_dir), rows, questions / "images")
                runs[kind].append((score.correct / score.n, seconds))
                told = f"{kind}, seed {seed}: {score.correct} of {score.n} right, {seconds:.0f} s"
                print(told, file=sys.stderr, flush=True)
    return runs


def figures(kind: str, runs: list[tuple[float, float]], whole: list[tuple[float, float]]) -> list[Row]:
    """Return what the runs of a kind came to, and how far that is from those over whole weights."""
    name = "LoRA over fp32" if kind == "none" else f"LoRA over {kind}"
    rows = [Row(f"{name}: right conclusions", 100 * statistics.mean(share for share, _ in runs), "%")]
    if runs is not whole:
        below = statistics.mean(before - share for (share, _), (before, _) in zip(runs, whole, strict=True))
        rows.append(Row(f"{name}: below fp32 by", 100 * below, "points", "<= 2"))
    return [*rows, Row(f"{name}: time of a fine-tune", statistics.mean(seconds for _, seconds in runs), "s")]


def main(config: QuantizedLoraBenchmark) -> None:
    """Fine-tune, answer, and print the rows."""
    if not (config.demo / "data").is_dir():
        finish(f"quantized_lora: not measured, {config.demo / 'data'} is not there; `make demo` makes it", [])
        return
    with redirect_stdout(sys.stderr):
        runs = measure(config)
    whole = runs[config.kinds[0]]
    finish(
        f"quantized_lora: rank {config.rank}, {config.start_steps} steps without adapters, {config.steps} with, "
        f"{config.seeds} seeds, {torch.get_num_threads()} threads",
        [row for kind, entries in runs.items() for row in figures(kind, entries, whole)],
    )


if __name__ == "__main__":
    cli.run(main, QuantizedLoraBenchmark)
