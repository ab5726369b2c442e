"""Objectives from outside the package: numbers of the rows reach them, and weights are shared over passes and ranks."""

import json
from pathlib import Path

import pytest
import torch
from processes import together
from scratch import scratch_vlm
from test_matrix import make_rows
from test_pretrain import rows_dir, train_arguments  # noqa: F401 - a fixture

from cobra.training.config import Hyperparameters, PretrainConfig
from cobra.training.objective import OBJECTIVES, NextToken
from cobra.training.pretrain import pretrain
from cobra.training.run_context import RunContext, StepReport
from cobra.training.strategy import TrainStrategy
from cobra.util.cli import parse
from cobra.util.data_utils import PaddedCollatorForLanguageModeling
from cobra.util.distributed import World
from cobra.util.errors import UserError

CPU = World(0, 1, torch.device("cpu"))
REWARDS = [0.5, 2.0, 0.0, 1.0]


class RewardWeighted(NextToken):
    """Likelihood weighted by rewards: a label weighs as much as its row is rewarded."""

    row_fields = ("reward",)

    def _rows(self, batch):
        """Yield (reward, batch) of each row."""
        for row, reward in enumerate(batch["reward"]):
            has_image = bool((batch["multimodal_indices"] == row).any())
            pixels = batch["pixel_values"]
            alone = {name: value[row : row + 1] for name, value in pixels.items()} if has_image else pixels
            values = {name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask", "labels")}
            images = torch.zeros(int(has_image), dtype=torch.long)
            yield reward, {**values, "pixel_values": alone, "multimodal_indices": images}

    def weigh(self, batch):
        return sum(reward * super(RewardWeighted, self).weigh(row) for reward, row in self._rows(batch))

    def loss(self, vlm, batch):
        return sum(reward * super(RewardWeighted, self).loss(vlm, row) for reward, row in self._rows(batch))


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


def test_run_with_an_objective_and_a_part_from_outside(rows_dir, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(OBJECTIVES, "reward-weighted", RewardWeighted)
    rows = json.loads((rows_dir / "rows.json").read_text())
    more = ["--objective", "reward-weighted", "--model.finetune_max_steps", "1"]
    more += ["--model.finetune_per_device_batch_size", "4"]
    (tmp_path / "images").symlink_to(rows_dir / "images")
    steps = []

    def remember(run: RunContext, report: StepReport) -> None:
        steps.append(report.step)
        report.values["Remembered"] = 1.0

    def train(rows: list[dict]) -> Path:
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        return pretrain(parse(PretrainConfig, train_arguments(tmp_path, tmp_path, "run", *more)), [remember])

    with pytest.raises(UserError, match=r"row \d+ .* has None under `reward`, where --objective needs a finite number"):
        train([*rows])
    run_dir = train([row | {"reward": number % 3} for number, row in enumerate(rows)])
    lines = [json.loads(line) for line in (run_dir / "run.jsonl").read_text().splitlines()]
    assert steps == [1] and lines[0]["Finetune/Remembered"] == 1.0


def test_unknown_objectives_are_refused(tmp_path):
    with pytest.raises(UserError, match="the objective 'next' is unknown; the known ones are: next-token"):
        pretrain(parse(PretrainConfig, ["--objective", "next", "--run_root_dir", str(tmp_path)]))
