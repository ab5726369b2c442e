"""Objectives: the weights of batches are shared over passes and processes."""

import json
from pathlib import Path

import pytest
import torch
from processes import together
from scratch import scratch_vlm
from test_matrix import make_rows

from cobra.training.batches import count_targets
from cobra.training.config import Hyperparameters, PretrainConfig
from cobra.training.objective import Objective
from cobra.training.pretrain import pretrain
from cobra.training.strategy import TrainStrategy
from cobra.util.cli import parse
from cobra.util.data_utils import PaddedCollatorForLanguageModeling
from cobra.util.distributed import World
from cobra.util.errors import UserError

CPU = World(0, 1, torch.device("cpu"))
REWARDS = [0.5, 2.0, 0.0, 1.0]


class RewardWeighted(Objective):
    """Likelihood weighted by rewards: a label weighs as much as its row is rewarded."""

    row_fields = ("reward",)

    def weigh(self, batch):
        rows = zip(batch["labels"], batch["reward"], range(len(batch["reward"])), strict=True)
        images = batch["multimodal_indices"].tolist()
        return sum(
            reward * count_targets(labels[None], torch.arange(int(row in images))) for labels, reward, row in rows
        )

    def loss(self, vlm, batch):
        inputs = {name: value for name, value in batch.items() if name != "reward"}
        return (vlm(**inputs, loss_reduction="rows", return_logits=False).loss * batch["reward"]).sum()


def step(world: World, rewards: list[float], size: int, objective=None) -> tuple[float, float]:
    """Return loss and gradient norm of one step on four rows, in passes of some."""
    vlm = scratch_vlm()
    vlm.freeze_backbones("finetune")
    values = Hyperparameters(1, None, 4, size, 1e-3, 0.1, 1.0, "linear-warmup+cosine-decay", 0.0)
    strategy = TrainStrategy(vlm, world, values, objective=objective)
    strategy.run_setup()
    rows = [row | {"reward": reward} for row, reward in zip(make_rows()[:4], rewards, strict=True)]
    fields = () if objective is None else objective.row_fields
    collator = PaddedCollatorForLanguageModeling(512, 1, (3, 48, 48), row_fields=fields)
    mine = rows[world.rank :: world.size]
    passes = [collator(mine[begin : begin + size]) for begin in range(0, len(mine), size)]
    result = strategy.train_step(passes, 1e-3)
    return result.loss, result.grad_norm


def work(world: World, folder: Path) -> None:
    (folder / f"{world.rank}.json").write_text(json.dumps(step(world, REWARDS, 2, RewardWeighted())))


def test_equal_rewards_are_the_likelihood():
    plain = step(CPU, [1.0] * 4, 4)
    for reward in (0.25, 3.0):
        assert step(CPU, [reward] * 4, 4, RewardWeighted()) == pytest.approx(plain, rel=1e-4)
    assert step(CPU, REWARDS, 4, RewardWeighted()) != pytest.approx(plain, rel=1e-3)


def test_weights_are_shared_over_passes_and_processes(tmp_path):
    whole = step(CPU, REWARDS, 4, RewardWeighted())
    assert step(CPU, REWARDS, 2, RewardWeighted()) == pytest.approx(whole, rel=1e-4)
    together(2, tmp_path, work, tmp_path)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(whole, rel=1e-4)


def test_unknown_objectives_are_refused(tmp_path):
    with pytest.raises(UserError, match="the objective 'next' is unknown; the known ones are: next-token"):
        pretrain(parse(PretrainConfig, ["--objective", "next", "--run_root_dir", str(tmp_path)]))
