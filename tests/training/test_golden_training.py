"""Schedule, parameter groups and a training run against the original Cobra."""

import math
import re
from pathlib import Path

import pytest
import torch

from cobra.training.optimizer import is_decayed
from cobra.training.schedule import learning_rate
from cobra.training.strategy import Hyperparameters, TrainStrategy
from cobra.util.distributed import World

CPU = World(0, 1, torch.device("cpu"))


def test_golden_learning_rates(golden):
    """Ours equal Cobra's but for a first step without warm-up, where Cobra forces 0 and so wastes the step."""
    for name, case in golden.json("lr_schedule.json").items():
        steps, peak, ratio = case["num_training_steps"], case["base_lr"], case["warmup_ratio"]
        total = steps
        epochs = re.search(r"n=(\d+) gbs=(\d+) epochs=(\d+)", name)
        if epochs:
            # Cobra plans ceil(n / gbs) batches an epoch, whatever the sampler then yields.
            rows, batch, passes = map(int, epochs.groups())
            total = math.ceil(rows / batch) * passes
        rates = [learning_rate(step, total, peak, ratio) for step in range(steps)]
        expected = list(case["lr_used_by_step"])
        if case["warmup_steps"] == 0:
            assert expected[0] == 0.0
            expected[0] = peak
        assert rates == pytest.approx(expected, rel=1e-6, abs=1e-15)
        # Cobra's log holds the rate of the step that follows.
        logged = case["lr_logged_after_step"][: steps - 1]
        assert rates[1:] == pytest.approx(logged, rel=1e-6, abs=1e-15)


def test_golden_parameter_groups(golden, golden_vlm):
    """Ours equal Cobra's but for A_log, which Cobra decays: decaying it drives every decay rate towards -1."""
    golden_vlm.freeze_backbones("finetune")
    cobras = {name: group["weight_decay"] > 0 for group in golden.json("param_groups.json") for name in group["names"]}
    trained = {name: p for name, p in golden_vlm.named_parameters() if p.requires_grad}
    assert trained.keys() == cobras.keys()
    for name, parameter in trained.items():
        assert is_decayed(name, parameter) == (cobras[name] and not name.endswith("A_log")), name


class Recorder:
    """Takes the numbers of every step in place of the trackers."""

    def __init__(self):
        self.steps = []

    def commit(self, step, loss, rate, grad_norm, tokens):
        self.steps.append((loss, grad_norm, tokens))


def test_golden_training_run(golden, golden_vlm, golden_data, tmp_path):
    run, groups = golden.json("train_run.json"), golden.json("param_groups.json")
    parameters = dict(golden_vlm.named_parameters())
    golden_vlm.freeze_backbones(run["stage"])
    strategy = TrainStrategy(
        golden_vlm,
        CPU,
        Hyperparameters(
            run["epochs"],
            run["max_steps"],
            run["gbs"],
            run["bs"],
            run["lr"],
            run["wd"],
            run["max_grad_norm"],
            "linear-warmup+cosine-decay",
            run["warmup_ratio"],
        ),
        enable_gradient_checkpointing=True,
        enable_mixed_precision_training=False,
    )
    strategy.run_setup()
    # Cobra's groups and rates: it decays A_log, and its first step without warm-up has rate 0.
    strategy.optimizer = torch.optim.AdamW(
        [
            {
                "params": [parameters[name] for name in group["names"]],
                "weight_decay": group["weight_decay"],
                "betas": tuple(group["betas"]),
                "eps": group["eps"],
            }
            for group in groups
        ],
        lr=run["lr"],
    )
    used = [0.0, *run["lr_logged_after_step"][:-1]]
    strategy.rate = lambda step, total: used[step]
    recorder = Recorder()
    lengths = golden_data.finetune.get_modality_lengths()
    strategy.run_training(
        golden_data.finetune, golden_data.collator, lengths, tmp_path / "run", recorder, seed=run["seed"]
    )

    size = run["grad_accumulation_steps"]
    micro = run["micro_batches"]
    assert len(recorder.steps) == run["max_steps"] == len(micro) // size
    for step, (loss, grad_norm, tokens) in enumerate(recorder.steps):
        passes = micro[step * size : (step + 1) * size]
        assert tokens == sum(one["n_label_tokens"] for one in passes)
        expected = sum(one["loss"] * one["n_label_tokens"] for one in passes) / tokens
        assert loss == pytest.approx(expected, rel=1e-5), step
        assert grad_norm == pytest.approx(run["grad_norm_before_clip_by_step"][step], rel=1e-3), step
    for name, (norm, total) in golden.npz("train_run_params.npz").items():
        value = parameters[name].detach().double()
        assert value.norm().item() == pytest.approx(norm.item(), rel=1e-5), name
        assert value.sum().item() == pytest.approx(total.item(), abs=1e-4), name


def test_golden_checkpoint_layout(golden, golden_vlm, tmp_path):
    from cobra.models.checkpoint import read_checkpoint
    from cobra.training.checkpointing import save_checkpoint

    expected = golden.json("observed.json")["checkpoint_top_keys"]
    golden_vlm.freeze_backbones("finetune")
    path = save_checkpoint(golden_vlm, tmp_path, CPU, step=5, epoch=1, loss=9.50051)
    pattern = re.sub(r"\d", "0", path.name)
    assert pattern in [re.sub(r"\d", "0", Path(name).name) for name in golden.json("train_run.json")["checkpoint_files"]]
    values = torch.load(path, weights_only=True)
    assert {key: {module: len(tensors) for module, tensors in values[key].items()} for key in values} == expected
    latest, original = read_checkpoint(path.with_name("latest-checkpoint.pt")), read_checkpoint(
        golden.path("run") / "checkpoints" / "latest-checkpoint.pt"
    )
    for module, tensors in original.items():
        for name, tensor in tensors.items():
            assert torch.equal(latest[module][name], tensor), name
