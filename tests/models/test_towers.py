"""A vision tower that is not timm's: registered from outside, built, trained, read from a file, and counted."""

import pytest
import torch
from safetensors.torch import save_file
from scratch import picture, scratch_vlm
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cobra.models import get_vision_backbone_and_transform
from cobra.models.backbones.vision import VISION_BACKBONES, Tower, VisionSpec, register_vision_backbone
from cobra.training.flops import count_flops
from cobra.training.optimizer import decayed_names
from cobra.training.planning.activations import Pass, measure_image
from cobra.training.planning.memory import learned_bytes
from cobra.util.errors import UserError

SIDE, PATCH, WIDTH = 32, 8, 24


class PatchMixer(Tower):
    """Patches through one linear layer and a GELU each; a second layer is there and is not used."""

    embed_dim = WIDTH
    num_patches = (SIDE // PATCH) ** 2
    image_size = SIDE
    pixel_mean = pixel_std = (0.5, 0.5, 0.5)
    undecayed_names = ("positions",)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.positions = nn.Parameter(torch.zeros(self.num_patches, WIDTH))
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.unused = nn.Linear(WIDTH, 100)

    def forward(self, pixels):
        patches = self.embed(pixels.to(self.embed.weight)).flatten(2).transpose(1, 2) + self.positions
        return nn.functional.gelu(self.mix(patches))

    def flops(self):
        embed = 2 * self.embed.weight.numel() * self.num_patches
        return embed + 2 * self.mix.weight.numel() * self.num_patches, embed

    def used_parameters(self):
        return [self.positions, *self.embed.parameters(), *self.mix.parameters()]


@pytest.fixture(autouse=True)
def registered():
    asked = []

    def build(pretrained):
        asked.append(pretrained)
        return PatchMixer()

    register_vision_backbone("patch-mixer-32px", VisionSpec({"": build}))
    # Joined with a copy of itself, as towers of timm are.
    register_vision_backbone("two-mixers-32px", VisionSpec({"one": build, "two": build}, pretrained=False))
    yield asked
    del VISION_BACKBONES["patch-mixer-32px"], VISION_BACKBONES["two-mixers-32px"]


def small_vlm(backbone="patch-mixer-32px"):
    vlm = scratch_vlm(vision_backbone_id=backbone)
    vlm.freeze_backbones("full-finetune")
    return vlm.train()


def loss_of(vlm):
    pixels = vlm.vision_backbone.image_transform(picture(1))
    ids = torch.randint(2, 700, (1, 6), generator=torch.Generator().manual_seed(0))
    batch = {name: value[None] for name, value in pixels.items()} if isinstance(pixels, dict) else pixels[None]
    return vlm(input_ids=ids, pixel_values=batch, labels=ids).loss


def test_a_function_builds_it_and_is_told_whether_to_fetch_weights(registered):
    backbone, transform = get_vision_backbone_and_transform("patch-mixer-32px", "resize-naive")
    assert registered == [True]
    get_vision_backbone_and_transform("patch-mixer-32px", "resize-naive", inference_mode=True)
    get_vision_backbone_and_transform("two-mixers-32px", "resize-naive")
    assert registered == [True, False, False, False]
    pixels = transform(picture(0))
    assert pixels.shape == (3, SIDE, SIDE) and pixels.min() >= -1 and pixels.max() <= 1
    assert backbone(pixels[None]).shape == (1, backbone.num_patches, backbone.embed_dim) == (1, 16, WIDTH)


def test_its_parameters_have_the_names_of_checkpoints():
    single, _ = get_vision_backbone_and_transform("patch-mixer-32px", "resize-naive")
    assert {name.split(".")[0] for name in single.state_dict()} == {"featurizer"}
    fused, _ = get_vision_backbone_and_transform("two-mixers-32px", "resize-naive")
    assert {name.split(".")[0] for name in fused.state_dict()} == {"one_featurizer", "two_featurizer"}
    assert fused.embed_dim == 2 * WIDTH and fused.num_patches == 16


@pytest.mark.parametrize("backbone", ["patch-mixer-32px", "two-mixers-32px"])
def test_a_model_with_it_is_trained(backbone):
    vlm = small_vlm(backbone)
    loss_of(vlm).backward()
    for tower in vlm.vision_backbone.towers:
        assert all(parameter.grad is not None for parameter in tower.used_parameters())
        assert tower.unused.weight.grad is None


def test_it_says_what_weight_decay_spares():
    names = decayed_names(small_vlm("two-mixers-32px").vision_backbone)
    layers = {"embed.weight", "mix.weight", "unused.weight"}
    assert names == {f"{tower}_featurizer.{layer}" for tower in ("one", "two") for layer in layers}


def test_towers_side_by_side_must_have_as_many_patches():
    class FewPatches(PatchMixer):
        num_patches = 4

    towers = {"one": lambda pretrained: PatchMixer(), "two": lambda pretrained: FewPatches()}
    register_vision_backbone("two-mixers-32px", VisionSpec(towers))
    with pytest.raises(UserError, match="'two-mixers-32px' cut an image into {'one': 16, 'two': 4} patches"):
        get_vision_backbone_and_transform("two-mixers-32px", "resize-naive")


def test_its_weights_are_read_from_a_file(tmp_path):
    source = PatchMixer()
    save_file(
        {f"featurizer.{name}": value for name, value in source.state_dict().items()}, tmp_path / "tower.safetensors"
    )
    spec = VisionSpec({"": lambda pretrained: PatchMixer()}, weights=tmp_path / "tower.safetensors")
    register_vision_backbone("patch-mixer-32px", spec)
    backbone, _ = get_vision_backbone_and_transform("patch-mixer-32px", "resize-naive")
    assert torch.equal(backbone.tower("").mix.weight, source.mix.weight)


def test_its_operations_and_learned_parameters_are_counted():
    vlm = small_vlm()
    tower = vlm.vision_backbone.tower("")
    with FlopCounterMode(display=False) as counter:
        tower(torch.zeros(1, 3, SIDE, SIDE)).sum().backward()
    assert count_flops(vlm).towers.total == counter.get_total_flops()
    weights = sum(value.numel() for value in vlm.parameters())
    assert learned_bytes(vlm) == 4 * (weights - sum(value.numel() for value in tower.unused.parameters()))


@pytest.mark.parametrize("element", [4, 2])
def test_what_it_keeps_for_the_backward_pass_is_measured(element):
    vlm = small_vlm().to("meta")
    tower = vlm.vision_backbone.tower("")
    size = Pass(rows=2, text_tokens=6, image_tokens=16, element=element, kernels=False, checkpointing=False)
    trained, _ = measure_image(vlm, size)
    tower.requires_grad_(False)
    frozen, _ = measure_image(vlm, size)
    # The pixels, for the convolution; its output, for the linear layer; and that layer's, for the GELU.
    assert trained - frozen == element * (3 * SIDE**2 + 2 * tower.num_patches * WIDTH)
