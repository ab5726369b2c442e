"""The loss and the norm of every step are the same number on any processes, passes and kind of sharding."""

import math
from pathlib import Path

import pytest
import torch
from processes import together
from scratch import scratch_vlm

from cobra.training.after_step import step_parts
from cobra.training.config import Hyperparameters
from cobra.training.loop import TrainingLoop
from cobra.training.strategy import TrainStrategy
from cobra.util.data_utils import IGNORE_INDEX, PaddedCollatorForLanguageModeling
from cobra.util.distributed import World

STEPS = 12
GLOBAL_BATCH = 12
IMAGE_ROWS, TEXT_ROWS = 31, 5
STRATEGIES = ("fsdp-full-shard", "fsdp-shard-grad-op", "ddp")
CELLS = [(strategy, accumulation, None) for strategy in STRATEGIES for accumulation in (1, 2)]


def make_rows() -> list[dict]:
    """Rows of very uneven labels; some of text only, one without any label."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for number in range(IMAGE_ROWS + TEXT_ROWS):
        length = 5 + number * 7 % 23
        ids = torch.randint(2, 700, (length,), generator=generator)
        labels = ids.clone()
        labels[: length if number == 8 else 1 + number % 3] = IGNORE_INDEX
        pixels = torch.randn(3, 48, 48, generator=generator)
        towers = {"dino": pixels, "siglip": pixels.flip(1)} if number < IMAGE_ROWS else None
        rows.append({"pixel_values": towers, "input_ids": ids, "labels": labels})
    return rows


class Recorder:
    """Takes the place of the metrics."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def commit(self, step, loss, rate, grad_norm, *rest, **more):
        self.steps.append((loss, grad_norm))
        return {}

    def stop_clock(self):
        pass


def train(world: World, strategy: str, accumulation: int, group: int | None, folder: Path) -> list[tuple[float, float]]:
    vlm = scratch_vlm()
    vlm.freeze_backbones("finetune")
    values = Hyperparameters(
        epochs=1,
        max_steps=STEPS,
        global_batch_size=GLOBAL_BATCH,
        per_device_batch_size=GLOBAL_BATCH // world.size // accumulation,
        learning_rate=1e-4,
        weight_decay=0.1,
        max_grad_norm=1.0,
        lr_scheduler_type="linear-warmup+cosine-decay",
        warmup_ratio=0.0,
    )
    trainer = TrainStrategy(vlm, world, values, strategy, accumulation == 2, sharding_group_size=group)
    trainer.run_setup()
    rows = make_rows()
    lengths = [(row["pixel_values"] is not None, len(row["input_ids"])) for row in rows]
    collator = PaddedCollatorForLanguageModeling(512, 1, (3, 48, 48))
    recorder = Recorder()
    TrainingLoop(
        trainer, rows, collator, lengths, folder / f"{strategy}-{accumulation}", step_parts(recorder), seed=5
    ).run()
    return recorder.steps


def work(world: World, cells: list, folder: Path) -> None:
    found = {cell: train(world, *cell, folder) for cell in cells}
    if world.is_main:
        torch.save({str(cell): steps for cell, steps in found.items()}, folder / "found.pt")


def run(size: int, cells: list, folder: Path) -> dict[str, list[tuple[float, float]]]:
    together(size, folder, work, cells, folder)
    return torch.load(folder / "found.pt")


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> list[tuple[float, float]]:
    return train(World(0, 1, torch.device("cpu")), "fsdp-full-shard", 1, None, tmp_path_factory.mktemp("one"))


def assert_same(found: dict, expected: list) -> None:
    assert len(expected) == STEPS and all(map(math.isfinite, sum(expected, ())))
    for cell, steps in found.items():
        losses, norms = zip(*steps, strict=True)
        assert losses == pytest.approx([loss for loss, _ in expected], rel=1e-5), cell
        assert norms == pytest.approx([norm for _, norm in expected], rel=1e-4), cell


def test_rows_are_as_wanted():
    rows = make_rows()
    assert sum(row["pixel_values"] is None for row in rows) == TEXT_ROWS
    assert sum(bool((row["labels"] == IGNORE_INDEX).all()) for row in rows) == 1
    assert IMAGE_ROWS % GLOBAL_BATCH and TEXT_ROWS < GLOBAL_BATCH


def test_one_process(expected, tmp_path):
    world = World(0, 1, torch.device("cpu"))
    assert_same({str(cell): train(world, *cell, tmp_path) for cell in CELLS}, expected)


@pytest.mark.parametrize(
    ("size", "cells"),
    [
        (2, CELLS[-1:]),
        pytest.param(2, CELLS, marks=pytest.mark.slow),
        pytest.param(3, CELLS, marks=pytest.mark.slow),
        # Copies that are sharded within groups.
        pytest.param(4, [("fsdp-full-shard", 1, 2), ("fsdp-shard-grad-op", 3, 2)], marks=pytest.mark.slow),
    ],
)
def test_several_processes(expected, tmp_path, size, cells):
    assert_same(run(size, cells, tmp_path), expected)
