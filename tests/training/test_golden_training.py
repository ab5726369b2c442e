"""Recipe, schedule, groups, a training run and its directory against the original Cobra."""

import json
import math
import re

import draccus
import pytest
import torch
import yaml
from golden_set import GRADIENT_NORM, LOSS

import cobra
from cobra.conf import DatasetConfig, ModelConfig
from cobra.models.checkpoint import read_checkpoint
from cobra.training.after_step import step_parts
from cobra.training.batches import count_targets
from cobra.training.checkpointing import save_checkpoint
from cobra.training.config import Hyperparameters, PretrainConfig
from cobra.training.loop import TrainingLoop
from cobra.training.metrics import Metrics
from cobra.training.optimizer import build_optimizer, decayed_names
from cobra.training.run_directory import default_run_id, write_run_dir
from cobra.training.schedule import learning_rate
from cobra.training.strategy import TrainStrategy
from cobra.util.batching_utils import SplitModalitySampler
from cobra.util.distributed import World

CPU = World(0, 1, torch.device("cpu"))


def only_keys_of(cobras, values):
    """Take out of our values, at every depth, the keys that Cobra does not have."""
    if not isinstance(cobras, dict):
        return values
    return {key: only_keys_of(value, values[key]) for key, value in cobras.items()}


def test_golden_stock_recipe_is_the_registered_one(golden):
    stock = golden.json("stock_cobra+3b_config.json")
    config = PretrainConfig(
        model=ModelConfig.get_choice_class(stock["model"]["type"])(),
        dataset=DatasetConfig.get_choice_class(stock["dataset"]["type"])(),
    )
    assert default_run_id(config) == stock["run_id"]
    values = {**draccus.encode(config), "run_id": stock["run_id"]}
    # Ours are told when wandb is wanted; its package is an extra.
    assert values["trackers"] == [name for name in stock["trackers"] if name != "wandb"]
    assert only_keys_of(stock, values) == {**stock, "trackers": values["trackers"]}


def test_golden_learning_rates(golden):
    """Ours equal Cobra's but for a first step without warm-up, where Cobra forces 0 and so wastes the step."""
    cases = golden.json("lr_schedule.json")
    assert cases
    for name, case in cases.items():
        steps, peak, ratio = case["num_training_steps"], case["base_lr"], case["warmup_ratio"]
        total = steps
        epochs = re.search(r"n=(\d+) gbs=(\d+) epochs=(\d+)", name)
        if epochs:
            # Cobra plans ceil(n / gbs) batches an epoch, whatever the sampler then yields.
            rows, batch, passes = map(int, epochs.groups())
            total = math.ceil(rows / batch) * passes
        assert int(total * ratio) == case["warmup_steps"], name
        rates = [learning_rate(step, total, peak, ratio) for step in range(steps)]
        expected = list(case["lr_used_by_step"])
        if case["warmup_steps"] == 0:
            assert expected[0] == 0.0
            expected[0] = peak
        assert rates == pytest.approx(expected, rel=1e-6, abs=1e-15), name
        # Cobra's log holds the rate of the step that follows.
        logged = case["lr_logged_after_step"][: steps - 1]
        assert rates[1:] == pytest.approx(logged, rel=1e-6, abs=1e-15), name


def test_golden_parameter_groups(golden, golden_vlm):
    """Ours equal Cobra's but for those that Cobra decays though they are no matrices of a linear map.

    Decaying A_log drives every decay rate towards -1; tokens and positions of a trained tower are embeddings.
    """
    groups, run = golden.json("param_groups.json"), golden.json("train_run.json")
    golden_vlm.freeze_backbones(run["stage"])
    cobras = {name: group["weight_decay"] > 0 for group in groups for name in group["names"]}
    trained = {name: p for name, p in golden_vlm.named_parameters() if p.requires_grad}
    assert trained.keys() == cobras.keys()
    decayed = decayed_names(golden_vlm)
    for name in trained:
        spared = name.endswith(("A_log", "cls_token", "reg_token", "pos_embed"))
        assert (name in decayed) == (cobras[name] and not spared), name
    ours = build_optimizer(golden_vlm, run["lr"], run["wd"]).param_groups
    settings = {(group["weight_decay"], tuple(group["betas"]), group["eps"]) for group in ours}
    assert settings == {(group["weight_decay"], tuple(group["betas"]), group["eps"]) for group in groups}


def test_golden_order_and_batches_of_the_training_run(golden, golden_data):
    run = golden.json("train_run.json")
    lengths = golden_data.finetune.get_modality_lengths()
    assert len(lengths) == run["n_examples"]
    assert run["grad_accumulation_steps"] == run["gbs"] // run["bs"]
    sampler = SplitModalitySampler(None, lengths, run["gbs"], 1, 0, run["seed"])
    assert list(sampler) == run["sampler_order_epoch0"]
    order, epoch = [], 0
    while len(order) < len(run["micro_batches"]) * run["bs"]:
        sampler.set_epoch(epoch)
        order += sampler
        epoch += 1
    for index, expected in enumerate(run["micro_batches"]):
        rows = order[index * run["bs"] : (index + 1) * run["bs"]]
        batch = golden_data.collator([golden_data.finetune[row] for row in rows])
        assert list(batch["input_ids"].shape) == [expected["n"], expected["seq_len"]]
        assert batch["multimodal_indices"].tolist() == expected["multimodal_indices"]
        assert count_targets(batch["labels"], batch["multimodal_indices"]) == expected["n_label_tokens"]


class Recorder:
    """Takes the numbers of every step in place of the trackers."""

    def __init__(self):
        self.steps = []

    def commit(self, step, loss, rate, grad_norm, tokens, rows, extra, flops):
        assert extra == {"Skipped": 0} and flops > 0
        self.steps.append((loss, grad_norm, tokens))
        return {}


def steps_of(run):
    """The steps of a run: as many as it was told, or those of its epochs; the sampler fills up the last batch."""
    if run["max_steps"] is not None:
        return run["max_steps"]
    return run["epochs"] * len(run["sampler_order_epoch0"]) // run["gbs"]


def cobras_strategy(vlm, run, groups):
    """A strategy with Cobra's groups and rates: it decays A_log, and its first step has rate 0."""
    vlm.freeze_backbones(run["stage"])
    schedule = "linear-warmup+cosine-decay"
    values = [run[key] for key in ("epochs", "max_steps", "gbs", "bs", "lr", "wd", "max_grad_norm")]
    strategy = TrainStrategy(
        vlm,
        CPU,
        Hyperparameters(*values, schedule, run["warmup_ratio"]),
        enable_gradient_checkpointing=True,
        enable_mixed_precision_training=False,
    )
    strategy.run_setup()
    parameters = dict(vlm.named_parameters())
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
    return strategy


def test_golden_training_run(golden, golden_vlm, golden_data, tmp_path):
    run = golden.json("train_run.json")
    strategy = cobras_strategy(golden_vlm, run, golden.json("param_groups.json"))
    recorder = Recorder()
    lengths = golden_data.finetune.get_modality_lengths()
    TrainingLoop(
        strategy,
        golden_data.finetune,
        golden_data.collator,
        lengths,
        tmp_path / "run",
        step_parts(recorder),
        seed=run["seed"],
    ).run()
    size = run["grad_accumulation_steps"]
    micro = run["micro_batches"]
    assert len(recorder.steps) == steps_of(run) == len(micro) // size
    for step, (loss, grad_norm, tokens) in enumerate(recorder.steps):
        passes = micro[step * size : (step + 1) * size]
        assert tokens == sum(one["n_label_tokens"] for one in passes)
        expected = sum(one["loss"] * one["n_label_tokens"] for one in passes) / tokens
        assert loss == pytest.approx(expected, **LOSS), step
        assert grad_norm == pytest.approx(run["grad_norm_before_clip_by_step"][step], **GRADIENT_NORM), step
    parameters, expected = dict(golden_vlm.named_parameters()), golden.npz("train_run_params.npz")
    assert expected.keys() == {name for name, parameter in parameters.items() if parameter.requires_grad}
    for name, (norm, total) in expected.items():
        value = parameters[name].detach().double()
        assert value.norm().item() == pytest.approx(norm.item(), rel=1e-5), name
        assert value.sum().item() == pytest.approx(total.item(), abs=1e-4), name


def golden_config(golden) -> PretrainConfig:
    """The configuration of the golden run, with registered types: it was of a model and a data set of its own."""
    values = json.loads((golden.path("run") / "config.json").read_text())
    values["model"]["type"], values["dataset"]["type"] = "cobra+3b", "llava-v15"
    return draccus.decode(PretrainConfig, values)


def without_types(values):
    return {key: without_types(value) if isinstance(value, dict) else value for key, value in values.items()} | {
        "type": None
    }


def test_golden_run_directory_is_written_and_loaded_alike(golden, golden_vlm, tmp_path):
    """Every file that Cobra writes, by the same names, from which the same model comes back."""
    run, observed = golden.json("train_run.json"), golden.json("observed.json")
    config = golden_config(golden)
    assert default_run_id(config) == config.run_id
    hparams = write_run_dir(config, config.run_id, tmp_path)
    Metrics(("jsonl",), config.run_id, tmp_path, hparams, config.stage).finalize()
    golden_vlm.freeze_backbones(config.stage)
    for name in run["checkpoint_files"]:
        numbers = re.fullmatch(r"checkpoints/step-(\d+)-epoch-(\d+)-loss=(.+)\.pt", name)
        if numbers:
            step, epoch, loss = numbers.groups()
            path = save_checkpoint(golden_vlm, tmp_path, CPU, step=int(step), epoch=int(epoch), loss=float(loss))
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == set(run["checkpoint_files"]) == set(observed["run_dir_files"])

    values = json.loads((tmp_path / "config.json").read_text())
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == values
    original = json.loads((golden.path("run") / "config.json").read_text())
    assert yaml.safe_load((golden.path("run") / "config.yaml").read_text()) == original
    assert without_types(only_keys_of(without_types(original), without_types(values))) == without_types(original)
    header = json.loads((tmp_path / "run-metrics.jsonl").read_text().splitlines()[0])
    assert sorted(header) == sorted(observed["run_metrics_jsonl_first_line_keys"])

    expected = observed["checkpoint_top_keys"]
    tensors = torch.load(path, weights_only=True)
    assert {key: {module: len(state) for module, state in tensors[key].items()} for key in tensors} == expected
    latest = read_checkpoint(tmp_path / "checkpoints" / "latest-checkpoint.pt")
    for module, state in read_checkpoint(golden.path("run") / "checkpoints" / "latest-checkpoint.pt").items():
        assert all(torch.equal(latest[module][name], tensor) for name, tensor in state.items()), module
    again = cobra.load(tmp_path, device="cpu")
    case = next(case for case in golden.json("generation.json") if "vlm.generate_text" in case)
    pixels = golden.pixels(golden.npz("generation.npz"))
    assert again.generate_batch(pixels, [case["prompt"]], **case["kwargs"]) == [case["text"].strip()]


def test_golden_metrics_lines(golden, tmp_path):
    """The same names and the same smoothing. What goes in differs.

    Cobra's raw loss is the plain mean of the step's passes, ours is weighted by tokens; Cobra's rate is the next
    step's, ours the step's own.
    """
    run, expected = golden.json("train_run.json"), golden.json("observed.json")["run_id_jsonl_lines"]
    size = run["grad_accumulation_steps"]
    metrics = Metrics(("jsonl",), "run", tmp_path, {}, run["stage"])
    assert len(expected) == steps_of(run)
    for step, line in enumerate(expected, 1):
        [raw] = [value for name, value in line.items() if name.endswith("/Loss (Raw)")]
        [rate] = [value for name, value in line.items() if name.endswith("/Learning Rate")]
        passes = run["micro_batches"][(step - 1) * size : step * size]
        assert raw == pytest.approx(sum(one["loss"] for one in passes) / size, **LOSS)
        assert rate == pytest.approx(run["lr_logged_after_step"][step - 1], rel=1e-6)
        metrics.commit(step, raw, rate, grad_norm=1.0, tokens=1, rows=1)
    metrics.finalize()
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert len(lines) == len(expected)
    for line, reference in zip(lines, expected, strict=True):
        times = [name for name in reference if name.endswith("/Step Time")]
        assert all(line[name] > 0 for name in times)
        others = {name: value for name, value in reference.items() if name not in times}
        assert {name: line[name] for name in others} == pytest.approx(others, rel=1e-6)
