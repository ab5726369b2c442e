"""AdamW by parameter name, and clipping by the global norm."""

import pytest
import torch
from scratch import scratch_vlm
from torch import nn

from cobra.models.mamba import MambaConfig
from cobra.models.mamba.mamba1 import Mamba1Mixer
from cobra.training.optimizer import build_optimizer, clip_gradients, decayed_names


@pytest.fixture(scope="module")
def vlm():
    return scratch_vlm()


# Ends of the names of parameters that weight decay applies to, and of those that it spares.
DECAYED = (
    "embedding.weight",
    "in_proj.weight",
    "out_proj.weight",
    "x_proj.weight",
    "dt_proj.weight",
    "conv1d.weight",
    "projector.0.weight",
    "projector.2.weight",
    "projector.4.weight",
    "qkv.weight",
    "attn.proj.weight",
    "fc1.weight",
    "fc2.weight",
    "patch_embed.proj.weight",
    "attn_pool.q.weight",
    "attn_pool.kv.weight",
    "attn_pool.proj.weight",
)
SPARED = ("bias", "A_log", ".D", "norm.weight", "norm1.weight", "norm2.weight", "norm_f.weight", "gamma")
SPARED += ("pos_embed", "cls_token", "reg_token", "latent")


def test_decay_is_decided_for_every_parameter(vlm):
    names = decayed_names(vlm)
    for name, _ in vlm.named_parameters():
        decayed, spared = name.endswith(DECAYED), name.endswith(SPARED)
        assert decayed != spared, f"{name} is in neither or both of this test's lists"
        assert (name in names) == decayed, name


def test_decay_is_decided_by_name_whatever_the_local_shape():
    """A shard may be empty; A_log is spared by its name in a mixer."""
    mixer = Mamba1Mixer(MambaConfig(16, 1, 8))
    mixer.in_proj.weight = nn.Parameter(torch.zeros(0, 16))
    mixer.my_A_log_like = nn.Linear(4, 8)
    module = nn.ModuleDict({"mixer": mixer})
    names = decayed_names(module)
    assert "mixer.A_log" not in names
    assert names > {"mixer.in_proj.weight", "mixer.my_A_log_like.weight"}
    assert "A_log" not in decayed_names(mixer)


@pytest.mark.parametrize("stage", ["align", "finetune", "full-finetune"])
def test_only_what_trains_is_optimised(vlm, stage):
    vlm.freeze_backbones(stage)
    optimizer = build_optimizer(vlm, 0.01, 0.1)
    names, decayed = {id(parameter): name for name, parameter in vlm.named_parameters()}, decayed_names(vlm)
    for group in optimizer.param_groups:
        assert group["weight_decay"] in (0.0, 0.1)
        assert (group["betas"], group["eps"], group["lr"]) == ((0.9, 0.999), 1e-8, 0.01)
        for parameter in group["params"]:
            name = names.pop(id(parameter))
            assert parameter.requires_grad, name
            assert (name in decayed) == (group["weight_decay"] > 0), name
    # Each once, and none left out but the frozen ones.
    assert all(not dict(vlm.named_parameters())[name].requires_grad for name in names.values())


def test_decay_is_decoupled_from_the_gradient():
    module = nn.Linear(3, 2)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = build_optimizer(module, 0.1, 0.5)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(module.weight, before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(module.bias, before["bias"])


def test_the_first_step_moves_by_the_rate_against_the_gradient():
    module = nn.Linear(1, 1)
    before = module.weight.detach().clone()
    optimizer = build_optimizer(module, 0.25, 0.0)
    module.weight.grad, module.bias.grad = torch.full((1, 1), -40.0), torch.zeros(1)
    optimizer.step()
    torch.testing.assert_close(module.weight, before + 0.25)


def parameters(*gradients):
    made = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros(len(gradient or [0])))
        parameter.grad = None if gradient is None else torch.tensor(gradient)
        made.append(parameter)
    return made


def test_clipping_scales_all_gradients_alike():
    held = parameters([3.0, 0.0], None, [0.0, 4.0, 12.0])
    norm = clip_gradients(iter(held), 6.5)
    assert norm.item() == pytest.approx(13.0)
    assert held[0].grad.tolist() == pytest.approx([1.5, 0.0], rel=1e-5)
    assert held[1].grad is None
    assert held[2].grad.tolist() == pytest.approx([0.0, 2.0, 6.0], rel=1e-5)


def test_a_small_gradient_is_left_alone():
    held = parameters([3.0, 4.0])
    assert clip_gradients(held, 5.5).item() == pytest.approx(5.0)
    assert held[0].grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("gradients", [[[0.0, 0.0]], [None], []])
def test_no_gradient_has_norm_zero(gradients):
    assert clip_gradients(parameters(*gradients), 1.0).item() == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_is_reported(value):
    assert not clip_gradients(parameters([1.0, value]), 1.0).isfinite()
