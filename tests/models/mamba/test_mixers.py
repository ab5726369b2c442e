"""A mixer from outside the package: a gated linear recurrence trains, gets adapters, and answers."""

import json

import pytest
import torch
import torch.nn.functional as F
from scratch import picture, scratch_vlm
from torch import nn

import cobra
from cobra.models.backbones.llm.specs import LLM_BACKBONES, TINY_FOLDER, LLMSpec, register_llm_backbone
from cobra.models.load import cast
from cobra.models.mamba import MambaState
from cobra.models.mamba.config import MIXERS
from cobra.models.mamba.mixer import Mixer, register_mixer
from cobra.training.config import LoraConfig, PretrainConfig
from cobra.training.flops import count_flops
from cobra.training.lora import apply_lora, is_adapter
from cobra.training.optimizer import decayed_names
from cobra.training.pretrain import pretrain
from cobra.util.cli import parse
from cobra.util.errors import UserError


class GatedRecurrence(Mixer):
    """h_t = a h_{t-1} + (1 - a) u_t with a decay a for each channel, and a gate."""

    fp32_names = undecayed_names = ("decay",)
    lora_targets = ("in_proj", "out_proj")

    def __init__(self, config):
        super().__init__()
        self.in_proj = nn.Linear(config.d_model, 2 * config.d_inner, bias=False)
        self.decay = nn.Parameter(torch.linspace(-1, 3, config.d_inner).unsqueeze(0))
        self.out_proj = nn.Linear(config.d_inner, config.d_model, bias=False)

    @classmethod
    def state_shapes(cls, config):
        return {"memory": (config.d_inner,)}

    def scan_flops(self):
        return 4.0 * self.decay.numel()

    def forward(self, x, state=None, valid=None):
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        keep, memory, seen = torch.sigmoid(self.decay), torch.zeros_like(u[:, 0]), []
        memory = memory if state is None else state["memory"].clone()
        for step in range(x.shape[1]):
            read = keep * memory + (1 - keep) * u[:, step]
            memory = read if valid is None else torch.where(valid[:, step, None], read, memory)
            seen.append(memory)
        if state is not None:
            state["memory"].copy_(memory)
        return self.out_proj(torch.stack(seen, dim=1).to(u.dtype) * F.silu(gate))


LLM = {"llm_backbone_id": "gated-zephyr"}


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    """The language model of cobra-tiny with that mixer, at random values."""
    for registry in (MIXERS, LLM_BACKBONES):
        for name in ("GatedRecurrence", "gated-zephyr"):
            # Taken out again after the test.
            monkeypatch.setitem(registry, name, None)
            del registry[name]
    register_mixer("GatedRecurrence", GatedRecurrence)
    config = json.loads((TINY_FOLDER / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"ssm_cfg": {"layer": "GatedRecurrence", "heads": 2}}))
    register_llm_backbone("gated-zephyr", LLMSpec(tmp_path, tokenizer=TINY_FOLDER, pretrained=False))


def test_it_trains_and_the_run_answers(tmp_path):
    (tmp_path / "images").mkdir()
    picture(0).save(tmp_path / "images" / "a.png")
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A red circle."}]
    rows = [{"id": index, "image": "a.png", "conversations": turns} for index in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    flags = [
        *("--model.type", "cobra-tiny", "--model.llm_backbone_id", "gated-zephyr"),
        *("--dataset.type", "custom", "--dataset.dataset_root_dir", str(tmp_path)),
        *("--run_root_dir", str(tmp_path / "runs"), "--run_id", "gated", "--device", "cpu"),
        *("--model.finetune_max_steps", "30", "--model.finetune_global_batch_size", "4"),
        *("--model.finetune_per_device_batch_size", "2", "--model.finetune_learning_rate", "3e-3"),
    ]
    run = pretrain(parse(PretrainConfig, flags))
    lines = [json.loads(line)["Finetune/Loss"] for line in (run / "gated.jsonl").read_text().splitlines()]
    assert len(lines) == 30 and lines[-1] < lines[0] / 4
    vlm = cobra.load(run, device="cpu")
    prompt = vlm.get_prompt_builder()
    prompt.add_turn("human", "What is it?")
    assert vlm.generate(picture(0), prompt.get_prompt()) == "A red circle."


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
