"""Adapters over quantised weights: what they learn, keep, resume and become, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_run import TINY_IDS, adapted_vlm
from scratch import scratch_run, scratch_vlm

import cobra
from cobra.conf import ModelConfig
from cobra.models.checkpoint import read_checkpoint
from cobra.models.quantized import KINDS, QuantizedLinear, count_parameters, quantize, quantized_bytes, quantized_layers
from cobra.training.config import LoraConfig
from cobra.training.lora import check_lora
from cobra.training.planning.meta_model import build_meta_model
from cobra.training.pretrain import PretrainConfig, pretrain
from cobra.util.cli import parse
from cobra.util.errors import UserError

pytest.importorskip("bitsandbytes")
ROOT = Path(__file__).parents[2]
# Mean error of a normal weight over its mean size, above what was measured: 0.091 and 0.008.
ERRORS = {"nf4": 0.12, "int8": 0.012}


@pytest.mark.parametrize("width", [33, 48, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_layer_computes_with_its_rounded_weight(kind, width):
    torch.manual_seed(0)
    layer = torch.nn.Linear(width, 81)
    layer.weight.data.normal_()
    layer.weight.data[3] = 0
    quantised = QuantizedLinear(layer, kind)
    error = (quantised.weight - layer.weight).abs().mean() / layer.weight.abs().mean()
    assert 0 < error < ERRORS[kind]
    assert (quantised.weight[3] == 0).all()
    x = torch.randn(5, width, requires_grad=True)
    same = x.detach().clone().requires_grad_()
    out, expected = quantised(x), torch.nn.functional.linear(same, quantised.weight, layer.bias)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(x.grad, same.grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert quantised(x).dtype == torch.bfloat16


def test_no_dequantised_weight_is_kept_for_the_backward_pass():
    layer = QuantizedLinear(torch.nn.Linear(64, 64, bias=False), "nf4")
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(2, 64, requires_grad=True))
    assert saved == []


def arguments(folder, run_id, *more):
    sizes = ("--model.finetune_global_batch_size", "4", "--model.finetune_per_device_batch_size", "2")
    start = ("--model.vision_backbone_id", TINY_IDS["vision_backbone_id"])
    start += ("--model.llm_backbone_id", TINY_IDS["llm_backbone_id"], "--pretrained_checkpoint", "cobra-tiny")
    flags = ("--lora.rank", "2", "--lora.quantize", "nf4", "--page", "false", *more)
    return scratch_run(folder, run_id, *sizes, *start, *flags)


def train(folder, run_id, *more):
    return pretrain(parse(PretrainConfig, arguments(folder, run_id, *more)))


def losses(run_dir):
    lines = (run_dir / f"{run_dir.name}.jsonl").read_text().splitlines()
    return [json.loads(line)["Finetune/Loss (Raw)"] for line in lines]


def test_a_run_keeps_adapters_alone_goes_on_to_the_bit_and_is_merged_over_what_it_was_trained_over(folder, capsys):
    steps = "--model.finetune_max_steps"
    whole = train(folder, "whole", steps, "4")
    assert "llm_backbone in nf4" in capsys.readouterr().out
    kept = torch.load(whole / "checkpoints" / "latest-checkpoint.pt", weights_only=True)["model"]
    assert sorted(kept) == ["lora", "projector"]
    assert losses(whole)[0] != losses(train(folder, "fp32", steps, "1", "--lora.quantize", "null"))[0]
    capsys.readouterr()
    merged = cobra.load(whole, device="cpu")
    assert "weights in nf4" in capsys.readouterr().err
    mixer = merged.llm_backbone.llm.backbone.layers[0].mixer
    start = cobra.load("cobra-tiny", device="cpu", quantize="nf4").llm_backbone.llm.backbone.layers[0].mixer
    names = [f"llm.backbone.layers.0.mixer.in_proj.lora_{side}.weight" for side in "AB"]
    down, up = (kept["lora"][name] for name in names)
    torch.testing.assert_close(mixer.in_proj.weight, start.in_proj.weight + 16 * up @ down)


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_bit(folder):
    steps = ("--model.finetune_max_steps", "4", "--save_interval_steps", "2")
    whole = train(folder, "unbroken", *steps)
    script = (
        "import sys; from cobra.training.loop import TrainingLoop as L; from cobra.training.strategy import "
        "TrainStrategy as S; step = S.train_step\n"
        "def stop(self, *a):\n"
        "    if self.global_step == 3: sys.exit(9)\n"
        "    return step(self, *a)\n"
        "S.train_step = stop\n"
        "from cobra.training.pretrain import *; from cobra.util.cli import parse\n"
        "pretrain(parse(PretrainConfig, sys.argv[1:]))"
    )
    stopped = subprocess.run(
        [sys.executable, "-c", script, *arguments(folder, "broken", *steps)], cwd=ROOT, check=False
    )
    assert stopped.returncode == 9
    again = train(folder, "broken", *steps)
    assert losses(again) == losses(whole)
    first, second = (read_checkpoint(run / "checkpoints" / "latest-checkpoint.pt") for run in (whole, again))
    for name, tensor in first["llm_backbone"].items():
        assert torch.equal(tensor, second["llm_backbone"][name])


@pytest.mark.slow
def test_two_processes_train_to_the_loss_of_one(folder):
    one = train(folder, "one", "--model.finetune_max_steps", "3")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    more = arguments(folder, "two", "--model.finetune_max_steps", "3")
    subprocess.run([*command, "scripts/pretrain.py", *more], cwd=ROOT, check=True)
    assert losses(folder / "runs" / "two") == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_written_by_a_quantised_model(kind):
    vlm = scratch_vlm()
    before = count_parameters(vlm)
    quantize(vlm.llm_backbone, kind)
    assert vlm.quantized == kind
    assert count_parameters(vlm) == before
    assert len(list(quantized_layers(vlm))) == 2 * len(vlm.llm_backbone.llm.backbone.layers)
    # The step of one token and the pass over many read the same weights.
    ids = torch.randint(0, 200, (1, 12))
    assert vlm.generate_batch(None, ["What?"], max_new_tokens=4)
    assert torch.isfinite(vlm.llm_backbone.llm(vlm.llm_backbone.llm.backbone.embedding(ids))).all()
    with pytest.raises(UserError, match=f"quantised to {kind} and cannot be.*--lora.quantize {kind}"):
        vlm.freeze_backbones("finetune")


def test_a_quantised_base_under_adapters_has_fewer_bytes():
    vlm = adapted_vlm(None, LoraConfig(rank=3, alpha=5, quantize="nf4"))
    layers = list(quantized_layers(vlm))
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    assert quantized_bytes(vlm) == pytest.approx(weights * (0.5 + 4 / 64), rel=0.01)


@pytest.mark.slow
def test_the_plan_counts_what_is_quantised():
    model = ModelConfig.get_choice_class("cobra+3b")()
    sizes = {}
    for kind in (None, *KINDS):
        vlm = build_meta_model(model, "finetune", LoraConfig(rank=16, quantize=kind))
        sizes[kind] = sum(value.nbytes for value in vlm.parameters()) + quantized_bytes(vlm)
    quantised = 64 * 3 * 2 * 2560 * 2560 * 2 // 2
    assert sizes[None] - sizes["nf4"] == quantised * 2 - quantised * 9 // 16
    assert sizes[None] - sizes["int8"] == pytest.approx(quantised, rel=0.01)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LoraConfig(quantize="nf4"), "trained in full, which needs full weights: give --lora.rank 16"),
        (LoraConfig(rank=2, quantize="fp4"), "--lora.quantize 'fp4' is unknown"),
    ],
)
def test_what_cannot_be_quantised_is_refused(config, words):
    with pytest.raises(UserError, match=words):
        check_lora(config, "finetune")


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else object())
    with pytest.raises(UserError, match=r"bitsandbytes, which is not installed: pip install 'cobra-vlm\[quantize\]'"):
        cobra.load("cobra-tiny", quantize="int8")
