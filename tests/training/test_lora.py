"""Low-rank adapters: what trains, what stays, that every one of them takes part, and what is saved."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from lora_run import CONFIG, adapted_vlm, write_lora_run
from scratch import scratch_vlm
from test_step import CPU, ROWS, collate, make_strategy, snapshot

import cobra
from cobra.models.backbones.llm.specs import TINY_FOLDER
from cobra.models.load import cast
from cobra.models.mamba.mamba1 import Mamba1Mixer
from cobra.models.mamba.ops import cuda_ops
from cobra.training.checkpointing import save_checkpoint
from cobra.training.config import LoraConfig
from cobra.training.lora import adapter_state, apply_lora, check_base, check_lora, is_adapter
from cobra.training.optimizer import decayed_names
from cobra.training.run_state import RunSaver, RunState, states
from cobra.util.errors import UserError

TARGETS = Mamba1Mixer.lora_targets
START = TINY_FOLDER / "model.safetensors"


def stand_ins():
    """Functions of the signatures of mamba-ssm's kernels."""
    path = Path(__file__).parents[1] / "models" / "mamba" / "vendor_standins.py"
    spec = importlib.util.spec_from_file_location("vendor_standins", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def adapted_scratch(stage="finetune", **options):
    vlm = scratch_vlm()
    vlm.freeze_backbones(stage)
    apply_lora(vlm, LoraConfig(**{"rank": 4, "alpha": 8} | options))
    return vlm


def make_adapted(**options):
    """A strategy whose language model has adapters."""
    vlm = scratch_vlm()
    config = LoraConfig(rank=4, alpha=8, **options.pop("lora", {}))
    # freeze_backbones, which make_strategy calls, comes before the adapters.
    freeze, vlm.freeze_backbones = vlm.freeze_backbones, lambda stage: (freeze(stage), apply_lora(vlm, config))
    return make_strategy(vlm=vlm, **options)


def enliven_adapters(vlm):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def logits(vlm):
    return vlm(**{**collate(*ROWS), "labels": None}).logits


def test_the_default_targets_are_all_of_mamba_1():
    assert LoraConfig().target_modules == TARGETS


def test_at_first_the_answers_are_those_of_the_model_beneath():
    assert torch.equal(logits(adapted_scratch().eval()), logits(scratch_vlm()))


def test_what_trains_is_the_projector_and_the_adapters():
    vlm = adapted_scratch()
    trained = {name for name, parameter in vlm.named_parameters() if parameter.requires_grad}
    projector = {name for name, _ in vlm.named_parameters() if name.startswith("projector.")}
    adapters = {name for name, _ in vlm.named_parameters() if is_adapter(name)}
    assert trained == projector | adapters
    layers = len(vlm.llm_backbone.llm.backbone.layers)
    assert len(adapters) == layers * len(TARGETS) * 2
    assert vlm.trainable_module_keys == ["projector"]


def test_a_step_changes_these_and_nothing_else():
    strategy = make_adapted()
    before = snapshot(strategy.vlm)
    for _ in range(2):
        strategy.train_step([collate(*ROWS)], 1e-2)
    for name, parameter in strategy.vlm.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_takes_part(target):
    """peft's own layer would show `dt_proj` a weight without its adapter, and so never train it."""
    vlm = adapted_scratch(target_modules=(target,)).eval()
    before = logits(vlm)
    enliven_adapters(vlm)
    assert (logits(vlm) - before).abs().max() > 1e-3
    vlm(**collate(*ROWS)).loss.backward()
    for name, parameter in vlm.named_parameters():
        if is_adapter(name):
            assert f".{target}.lora_" in name
            assert parameter.grad.abs().max() > 0, name


def test_each_target_takes_part_in_the_fused_kernel(monkeypatch):
    """The kernel of CUDA is given weights and calls no layer; a stand-in of its signature is called here."""
    vlm = adapted_scratch()
    enliven_adapters(vlm)
    vlm.eval()
    batch = collate(*ROWS)
    expected = torch.autograd.grad(vlm(**batch).loss, [p for p in vlm.parameters() if p.requires_grad])
    monkeypatch.setattr(cuda_ops, "kernels", stand_ins)
    monkeypatch.setattr("cobra.models.mamba.mamba1.ops_for", lambda device: cuda_ops)
    found = torch.autograd.grad(vlm(**batch).loss, [p for p in vlm.parameters() if p.requires_grad])
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


def test_gradient_checkpointing_changes_nothing():
    kept, recomputed = make_adapted(), make_adapted(enable_gradient_checkpointing=True)
    for _ in range(3):
        assert kept.train_step([collate(*ROWS)], 1e-2) == recomputed.train_step([collate(*ROWS)], 1e-2)
    for (name, one), other in zip(kept.vlm.named_parameters(), recomputed.vlm.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_dropout_is_drawn_anew_for_every_pass_in_training_only_and_keeps_the_mean():
    vlm = adapted_scratch(dropout=0.5)
    enliven_adapters(vlm)
    layer = vlm.llm_backbone.llm.backbone.layers[0].mixer.dt_proj
    layer.eval()
    whole, frozen = layer.weight, layer.base_layer.weight
    assert torch.equal(layer.weight, whole)
    layer.train()
    torch.manual_seed(0)
    drawn = torch.stack([layer.weight for _ in range(400)])
    # A feature's column of the product is there, twice as large, or is not.
    products = (drawn - frozen)[:, 0, 0] / (whole - frozen)[0, 0]
    assert sorted({round(value, 2) for value in products.tolist()}) == [0.0, 2.0]
    assert products.mean().item() == pytest.approx(1, abs=0.15)
    x = torch.randn(3, layer.in_features)
    torch.manual_seed(5)
    called = layer(x)
    torch.manual_seed(5)
    torch.testing.assert_close(called, x @ layer.weight.T + layer.bias)


def test_dropout_and_checkpointing_see_the_same_draw():
    options = {"lora": {"dropout": 0.5}}
    torch.manual_seed(0)
    kept = make_adapted(**options)
    losses = []
    for strategy in (kept, make_adapted(enable_gradient_checkpointing=True, **options)):
        torch.manual_seed(3)
        losses.append([strategy.train_step([collate(*ROWS)], 1e-2) for _ in range(2)])
    assert losses[0] == losses[1]


def test_factors_are_decayed_as_matrices_are():
    """Decay draws the product towards zero, that is the model towards where it started."""
    strategy = make_adapted(weight_decay=0.1)
    names = {id(parameter): name for name, parameter in strategy.vlm.named_parameters()}
    decayed = {
        names[id(p)] for group in strategy.optimizer.param_groups if group["weight_decay"] for p in group["params"]
    }
    adapters = {name for name, _ in strategy.vlm.named_parameters() if is_adapter(name)}
    assert adapters < decayed
    assert adapters < decayed_names(strategy.vlm)
    # Those of the projector are the others.
    assert {name.partition(".")[0] for name in decayed - adapters} == {"projector"}


def test_only_what_trains_and_the_scan_stay_in_fp32():
    vlm = adapted_scratch()
    cast(vlm.llm_backbone, torch.bfloat16)
    for name, parameter in vlm.llm_backbone.named_parameters():
        wide = is_adapter(name) or name.endswith(("A_log", "mixer.D", "dt_proj.base_layer.bias"))
        assert parameter.dtype == (torch.float32 if wide else torch.bfloat16), name


def test_a_model_in_half_precision_gets_adapters_in_fp32():
    vlm = scratch_vlm()
    cast(vlm, torch.bfloat16)
    vlm.freeze_backbones("finetune")
    apply_lora(vlm, CONFIG)
    assert {value.dtype for value in adapter_state(vlm).values()} == {torch.float32}


def test_adapters_do_not_depend_on_or_disturb_the_runs_random_numbers():
    torch.manual_seed(1)
    first = adapter_state(adapted_scratch())
    vlm = scratch_vlm()
    vlm.freeze_backbones("finetune")
    torch.manual_seed(2)
    apply_lora(vlm, LoraConfig(rank=4, alpha=8))
    drawn = torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(drawn, torch.rand(1))
    second = adapter_state(vlm)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_names_and_shapes_of_what_is_saved():
    state = adapter_state(adapted_scratch())
    mixer = "llm.backbone.layers.0.mixer"
    config = scratch_vlm().llm_backbone.llm.config
    assert state[f"{mixer}.in_proj.lora_A.weight"].shape == (4, config.d_model)
    assert state[f"{mixer}.in_proj.lora_B.weight"].shape == (2 * config.d_inner, 4)
    assert state[f"{mixer}.dt_proj.lora_A.weight"].shape == (4, config.rank)
    assert all(not value.requires_grad for value in state.values())
    assert adapter_state(scratch_vlm()) == {}


def test_trained_saved_and_loaded_is_the_same_model(tmp_path):
    vlm = adapted_vlm(START)
    vlm.train()
    batch = collate(*ROWS)
    vlm(**batch).loss.backward()
    torch.optim.SGD([p for p in vlm.parameters() if p.requires_grad], 0.05).step()
    vlm.eval()
    loaded = cobra.load(write_lora_run(tmp_path / "run", vlm, START), device="cpu")
    expected = logits(vlm)
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_the_language_model_is_no_module_of_a_checkpoint(tmp_path):
    vlm = adapted_vlm(START)
    assert vlm.checkpoint_modules == ["projector"]
    path = save_checkpoint(vlm, tmp_path, CPU, 1, 1, 0.5)
    assert "llm_backbone" not in torch.load(path, weights_only=True)["model"]


def test_full_finetune_trains_the_towers_too():
    vlm = adapted_scratch("full-finetune")
    assert vlm.checkpoint_modules == ["vision_backbone", "projector"]
    assert all(parameter.requires_grad for parameter in vlm.vision_backbone.parameters())


def test_a_run_goes_on_where_it_was(tmp_path):
    strategy = make_adapted()
    strategy.train_step([collate(*ROWS)], 1e-2)
    saver = RunSaver(tmp_path, CPU, strategy.vlm, strategy.optimizer)
    saver.begin(RunState(1, 0, 0))
    expected = strategy.train_step([collate(*ROWS)], 1e-2)
    assert saver.finish() is None
    (path,) = states(tmp_path / "resume")
    # Of the small model the trained parameters are a sixth; the frozen ones are not in the state.
    fresh = make_adapted()
    RunSaver(tmp_path, CPU, fresh.vlm, fresh.optimizer).restore(path)
    assert fresh.train_step([collate(*ROWS)], 1e-2) == expected


def test_no_adapters_by_default():
    check_lora(LoraConfig(), "align")
    assert LoraConfig().rank == 0


@pytest.mark.parametrize(
    ("options", "stage", "message"),
    [
        ({"rank": -1}, "finetune", "--lora.rank is -1 and must be at least 1, or 0"),
        ({"alpha": 0}, "finetune", "--lora.alpha is 0 and must be above 0"),
        ({"dropout": 1.0}, "finetune", "--lora.dropout is 1.0 and must be at least 0 and below 1"),
        ({"target_modules": ("in_proj", "conv1d")}, "finetune", "--lora.target_modules conv1d: .* in_proj, x_proj"),
        ({"target_modules": ()}, "finetune", r"--lora.target_modules \(none\)"),
        ({}, "align", "align trains the projector only"),
    ],
)
def test_settings_that_make_no_sense(options, stage, message):
    with pytest.raises(UserError, match=message):
        check_lora(LoraConfig(**{"rank": 4} | options), stage)


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setattr("cobra.training.lora.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package peft.*cobra-vlm\[lora\]"):
        check_lora(LoraConfig(rank=4), "finetune")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs the package peft.*cobra-vlm\[lora\]"):
        adapted_scratch()


def test_random_weights_are_no_base():
    vlm = scratch_vlm()
    with pytest.raises(UserError, match="mamba-0.5m-init-zephyr starts from random values, which no file holds"):
        check_base(vlm, ["projector"])
    check_base(vlm, ["projector", "llm_backbone"])
    check_base(scratch_vlm(llm_backbone_id="mamba-0.5m-zephyr"), [])
