"""Adapters on a model that is sharded over processes, also with the weights beneath them in half precision."""

from pathlib import Path

import pytest
import torch
from processes import together
from scratch import scratch_vlm
from test_matrix import make_rows

from cobra.training.config import Hyperparameters, LoraConfig
from cobra.training.lora import adapter_state, apply_lora
from cobra.training.strategy import TrainStrategy
from cobra.util.data_utils import PaddedCollatorForLanguageModeling
from cobra.util.distributed import World

STEPS = 2
ROWS = 4
CELLS = [("fsdp-full-shard", False), ("fsdp-full-shard", True)]
VALUES = Hyperparameters(
    epochs=1,
    max_steps=STEPS,
    global_batch_size=ROWS,
    per_device_batch_size=ROWS // 2,
    learning_rate=1e-3,
    weight_decay=0.1,
    max_grad_norm=1.0,
    lr_scheduler_type="linear-warmup+cosine-decay",
    warmup_ratio=0.0,
)


def train(world: World, strategy: str, half: bool) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    vlm = scratch_vlm()
    vlm.freeze_backbones("finetune")
    apply_lora(vlm, LoraConfig(rank=4, alpha=8))
    trainer = TrainStrategy(vlm, world, VALUES, strategy)
    # As on CUDA.
    trainer.mixed_precision = half
    trainer.run_setup()
    dtypes = {name: value.dtype for name, value in vlm.named_parameters() if "in_proj" in name}
    for name, dtype in dtypes.items():
        assert dtype == (torch.bfloat16 if half and "base_layer" in name else torch.float32), name
    collator = PaddedCollatorForLanguageModeling(512, 1, (3, 48, 48))
    results = []
    for step in range(STEPS):
        rows = make_rows()[step * ROWS : (step + 1) * ROWS]
        # Two rows a pass: one pass on each of two processes, or two on one.
        passes = [collator(rows[:2]), collator(rows[2:])]
        result = trainer.train_step(passes if world.size == 1 else [passes[world.rank]], 1e-3)
        results.append((result.loss, result.grad_norm))
    return results, adapter_state(vlm)


def work(world: World, folder: Path) -> None:
    found = [train(world, *cell) for cell in CELLS]
    if world.is_main:
        torch.save(found, folder / "found.pt")


def test_two_processes_train_as_one(tmp_path):
    together(2, tmp_path, work, tmp_path)
    found = torch.load(tmp_path / "found.pt")
    initial = adapter_state_at_start()
    for (strategy, half), (steps, state) in zip(CELLS, found, strict=True):
        expected, whole = train(World(0, 1, torch.device("cpu")), strategy, half)
        for one, other in zip(steps, expected, strict=True):
            # Half precision: the towers of another batch size, and sums in another order.
            assert one == pytest.approx(other, rel=2e-2 if half else 1e-4), (strategy, half)
        assert state.keys() == whole.keys()
        for name, value in whole.items():
            assert state[name].shape == value.shape
            assert not torch.equal(value, initial[name]), name
            if not half:
                # AdamW's step is the sign of the gradient where that is small.
                assert ((state[name] - value).abs() > 1e-4).float().mean() < 0.02, name


def adapter_state_at_start() -> dict[str, torch.Tensor]:
    vlm = scratch_vlm()
    vlm.freeze_backbones("finetune")
    apply_lora(vlm, LoraConfig(rank=4, alpha=8))
    return adapter_state(vlm)
