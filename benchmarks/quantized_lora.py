"""Adapters over quantised weights against adapters over whole ones: right conclusions on the demo's held-out questions.

The demonstration's fine-tune (`make demo` leaves its data) is run with LoRA over fp32, nf4 and int8, several seeds of
each; runs start from `cobra-tiny` and answer greedily once the adapters are merged. Differences are paired by seed.
"""

import json
import statistics
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from harness import Row, finish

from cobra.demo.accuracy import answer_rows, score_answers
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
    steps: int = 600
    """Steps of each fine-tune; the demonstration takes 600."""
    seeds: int = 3
    """Fine-tunes of each kind."""


def fine_tune(config: QuantizedLoraBenchmark, kind: str, seed: int, folder: Path) -> Path:
    """Fine-tune `cobra-tiny` on the demo's rows; return the run directory."""
    arguments = [
        *("--dataset.type", "llava-cot-100k", "--dataset.dataset_root_dir", str(config.demo / "data")),
        *("--model.type", "cobra-tiny", "--pretrained_checkpoint", "cobra-tiny", "--device", "cpu"),
        *("--model.finetune_max_steps", str(config.steps), "--model.finetune_learning_rate", "0.002"),
        *("--model.finetune_global_batch_size", "32", "--model.finetune_per_device_batch_size", "16"),
        *("--lora.rank", str(config.rank), "--lora.quantize", "null" if kind == "none" else kind),
        *("--dataset.holdout_components", "[none.json,none]", "--page", "false", "--seed", str(seed)),
        *("--run_root_dir", str(folder), "--run_id", f"{kind}-{seed}"),
    ]
    return pretrain(cli.parse(PretrainConfig, arguments))


def measure(config: QuantizedLoraBenchmark) -> dict[str, list[tuple[float, float]]]:
    """Return the share of right conclusions and the seconds of training of every run, by kind."""
    questions = config.demo / "data" / "questions"
    rows = json.loads((questions / "rows.json").read_text())
    runs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in config.kinds}
    with TemporaryDirectory() as folder:
        for seed in range(1, config.seeds + 1):
            for kind in config.kinds:
                start = time.perf_counter()
                run_dir = fine_tune(config, kind, seed, Path(folder))
                seconds = time.perf_counter() - start
                score = score_answers(
                    rows, answer_rows(load(run_dir, device="cpu"), rows, questions / "images")
                ).overall
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
        f"quantized_lora: rank {config.rank}, {config.steps} steps, {config.seeds} seeds, "
        f"{torch.get_num_threads()} threads",
        [row for kind, entries in runs.items() for row in figures(kind, entries, whole)],
    )


if __name__ == "__main__":
    cli.run(main, QuantizedLoraBenchmark)
