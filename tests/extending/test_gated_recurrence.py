"""A mixer from outside the package: a gated linear recurrence trains, gets adapters, and answers."""

import json

import pytest
import torch
from few_steps import losses, train, write_colours
from scratch import picture, scratch_vlm

import cobra
from cobra.models.backbones.llm.specs import TINY_FOLDER, LLMSpec, register_llm_backbone
from cobra.models.load import cast
from cobra.models.mamba import MambaState
from cobra.training.config import LoraConfig
from cobra.training.flops import count_flops
from cobra.training.lora import apply_lora, is_adapter
from cobra.training.optimizer import decayed_names
from cobra.training.planning.activations import Pass, measure_pass
from cobra.training.planning.measure import saved_bytes
from cobra.util.errors import UserError

LLM = {"llm_backbone_id": "gated-zephyr"}


@pytest.fixture(autouse=True)
def registered(extend, tmp_path):
    """The language model of cobra-tiny with that mixer, at random values."""
    extend("gated_recurrence")
    config = json.loads((TINY_FOLDER / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"ssm_cfg": {"layer": "GatedRecurrence", "heads": 2}}))
    register_llm_backbone("gated-zephyr", LLMSpec(tmp_path, tokenizer=TINY_FOLDER, pretrained=False))


def test_it_trains_and_the_run_answers(tmp_path):
    run = train(
        write_colours(tmp_path),
        *("--model.llm_backbone_id", "gated-zephyr", "--model.finetune_max_steps", "30"),
        *("--model.finetune_learning_rate", "3e-3"),
    )
    lines = losses(run)
    assert len(lines) == 30 and lines[-1] < lines[0] / 2
    vlm = cobra.load(run, device="cpu")
    prompt = vlm.get_prompt_builder()
    prompt.add_turn("human", "Which colour?")
    assert vlm.generate(picture(0), prompt.get_prompt()).startswith("It is")


@torch.no_grad()
def test_steps_and_padded_rows_are_the_whole_sequence():
    llm = scratch_vlm(**LLM).llm_backbone.llm
    assert llm.config.mixer_options == {"heads": 2}
    x = torch.randn(2, 7, llm.config.d_model)
    whole, state = llm(x), MambaState.zeros(llm.config, 2, "cpu")
    assert {name: part.shape for name, part in state.parts.items()} == {"memory": (4, 2, 256)}
    llm(x[:, :5], state, torch.tensor([5, 3]))
    torch.testing.assert_close(llm(x[:1, 5:6], state.rows(slice(1))), whole[:1, 5:6])
    state.write(slice(1, 2), state.select(torch.tensor([1])))
    torch.testing.assert_close(llm(x[1:, 3:4], state.rows(slice(1, 2))), whole[1:, 3:4])


def test_its_policy_is_asked_for():
    vlm = scratch_vlm(**LLM)
    mixer = "llm_backbone.llm.backbone.layers.0.mixer"
    decayed = decayed_names(vlm)
    assert f"{mixer}.decay" not in decayed and f"{mixer}.in_proj.weight" in decayed
    assert count_flops(vlm).scan.forward == 4 * 4 * 256
    with pytest.raises(UserError, match="--lora.target_modules x_proj, dt_proj: .* in_proj, out_proj"):
        apply_lora(vlm, LoraConfig(rank=2))
    vlm.freeze_backbones("finetune")
    apply_lora(vlm, LoraConfig(rank=2, target_modules=("in_proj", "out_proj")))
    assert sum(is_adapter(name) for name, _ in vlm.named_parameters()) == 4 * 2 * 2
    cast(vlm, torch.bfloat16)
    dtypes = {name: value.dtype for name, value in vlm.named_parameters()}
    assert dtypes[f"{mixer}.decay"] == torch.float32
    assert dtypes[f"{mixer}.in_proj.base_layer.weight"] == torch.bfloat16


def test_a_state_of_the_other_kind_is_refused():
    ours, other = scratch_vlm(**LLM).llm_backbone.llm, scratch_vlm().llm_backbone.llm
    with pytest.raises(UserError, match=r"it holds conv .*, but this model has memory \(4, 1, 256\)"):
        ours(torch.zeros(1, 1, 128), MambaState.zeros(other.config, 1, "cpu"))


def test_its_passes_are_planned_for():
    vlm = scratch_vlm(**LLM)
    vlm.freeze_backbones("finetune")
    llm, embeds = vlm.llm_backbone.llm, torch.randn(2, 20, 128, requires_grad=True)
    size = Pass(rows=2, image_tokens=0, text_tokens=20, element=4, kernels=False, checkpointing=False)
    held = saved_bytes(lambda: llm(embeds), llm.parameters())
    footprint = measure_pass(vlm.to("meta"), size)
    assert 2 * footprint.kept + footprint.copies == pytest.approx(held, rel=1e-3)
