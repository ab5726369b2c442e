"""Vision towers: every registered one exists and is built as Cobra had it; features, transforms, errors."""

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from scratch import picture
from timm.layers import QuickGELU
from timm.models import get_pretrained_cfg
from torch import nn

from cobra.models import get_vision_backbone_and_transform
from cobra.models.backbones.vision import (
    VISION_BACKBONES,
    TowerSpec,
    VisionBackbone,
    VisionSpec,
    build_transform,
    register_vision_backbone,
)
from cobra.models.backbones.vision.transforms import LetterboxPad
from cobra.util.errors import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

# Identifier -> patches, channels, blocks of each tower, (mean, std) of each tower.
FACTS = {
    "clip-vit-b": (196, 768, [12], [CLIP]),
    "clip-vit-l": (256, 1024, [24], [CLIP]),
    "clip-vit-l-336px": (576, 1024, [24], [CLIP]),
    "siglip-vit-so400m": (256, 1152, [27], [HALF]),
    "siglip-vit-so400m-384px": (729, 1152, [27], [HALF]),
    "siglip-vit-b16-224px": (196, 768, [12], [HALF]),
    "siglip-vit-b16-256px": (256, 768, [12], [HALF]),
    "siglip-vit-b16-384px": (576, 768, [12], [HALF]),
    "dinov2-vit-l": (256, 1024, [24], [IMAGENET]),
    "in1k-vit-l": (196, 1024, [24], [HALF]),
    "dinosiglip-vit-so-384px": (729, 2176, [24, 27], [IMAGENET, HALF]),
    "dinoclip-vit-l-336px": (576, 2048, [24, 24], [IMAGENET, CLIP]),
    "dinosiglip-vit-tiny-48px": (9, 128, [4, 4], [IMAGENET, HALF]),
    "dinosiglip-vit-tiny-48px-init": (9, 128, [4, 4], [IMAGENET, HALF]),
}

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}


# As it is before other tests register towers of their own.
REGISTERED = list(VISION_BACKBONES)


def test_every_registered_backbone_is_in_the_table():
    assert list(FACTS) == REGISTERED


@pytest.mark.parametrize("identifier", FACTS)
def test_every_registered_tower_is_one_of_timm_with_weights(identifier):
    for tower in VISION_BACKBONES[identifier].towers.values():
        assert timm.is_model(tower.timm_id)
        config = get_pretrained_cfg(tower.timm_id)
        assert config is not None
        assert config.has_weights
        assert config.hf_hub_id


@pytest.mark.parametrize("identifier", FACTS)
def test_every_registered_backbone_is_built(identifier, tmp_path):
    """On the meta device, at full size."""
    patches, channels, depths, normalisations = FACTS[identifier]
    with torch.device("meta"):
        backbone = VisionBackbone(identifier, VISION_BACKBONES[identifier], "resize-naive", load_weights=False)
    towers = [backbone.tower(name) for name in backbone.tower_names]
    side = next(iter(VISION_BACKBONES[identifier].towers.values())).image_size
    assert (backbone.num_patches, backbone.embed_dim) == (patches, channels)
    assert backbone.default_image_resolution == (3, side, side)
    assert [len(tower.blocks) for tower in towers] == depths
    assert {name.partition(".")[0] for name in backbone.state_dict()} == {
        f"{name}_featurizer" if name else "featurizer" for name in backbone.tower_names
    }
    names = [name for name in backbone.tower_names if name]
    pixels = torch.zeros(2, 3, side, side, device="meta")
    features = backbone(dict.fromkeys(names, pixels) if names else pixels)
    assert features.shape == (2, patches, channels)
    transformed = backbone.image_transform(picture(0, (50, 30)))
    found = list(transformed.values()) if names else [transformed]
    assert [tuple(value.shape) for value in found] == [(3, side, side)] * len(depths)
    # White becomes (1 - mean) / std.
    white = backbone.image_transform(Image.new("RGB", (8, 8), "white"))
    for value, (mean, std) in zip(white.values() if names else [white], normalisations, strict=True):
        expected = (1 - torch.tensor(mean)) / torch.tensor(std)
        torch.testing.assert_close(value.amax((1, 2)), expected)
        torch.testing.assert_close(value.amin((1, 2)), expected)


@pytest.mark.parametrize("identifier", [name for name in FACTS if "clip-vit" in name and "siglip" not in name])
def test_clip_is_built_with_quick_gelu(identifier):
    """OpenAI's CLIP was trained with it; timm's entries of today build the exact GELU."""
    small = {
        name: TowerSpec(tower.timm_id, 28 if "14" in tower.timm_id else 32, tower.kwargs | SMALL)
        for name, tower in VISION_BACKBONES[identifier].towers.items()
    }
    backbone = VisionBackbone(identifier, VisionSpec(small), "resize-naive", load_weights=False)
    for name, tower in small.items():
        activations = {type(block.mlp.act) for block in backbone.tower(name).blocks}
        assert activations == ({QuickGELU} if ".openai" in tower.timm_id else {nn.GELU})


def test_dinoclip_has_quick_gelu_in_one_tower():
    towers = VISION_BACKBONES["dinoclip-vit-l-336px"].towers
    assert [tower.kwargs for tower in towers.values()] == [{}, {"act_layer": "quick_gelu"}]


def reference_patches(vit, pixels):
    """The second-to-last block's output by hand."""
    kept = []
    hook = vit.blocks[-2].register_forward_hook(lambda module, inputs, output: kept.append(output))
    vit(pixels)
    hook.remove()
    return kept[0][:, vit.num_prefix_tokens :]


@torch.no_grad()
def test_features_are_of_the_second_to_last_block_without_norm_and_prefix():
    spec = VisionSpec(
        {
            "dino": TowerSpec("vit_large_patch14_reg4_dinov2.lvd142m", 28, SMALL),
            "siglip": TowerSpec("vit_base_patch16_siglip_224", 32, SMALL),
        },
        pretrained=False,
    )
    backbone = VisionBackbone("small", spec, "resize-naive").eval()
    dino, siglip = backbone.tower("dino"), backbone.tower("siglip")
    assert (dino.num_prefix_tokens, siglip.num_prefix_tokens) == (5, 0)
    pixels = {"dino": torch.randn(2, 3, 28, 28), "siglip": torch.randn(2, 3, 32, 32)}
    features = backbone(pixels)
    assert features.shape == (2, 4, 64)
    torch.testing.assert_close(features[..., :32], reference_patches(dino, pixels["dino"]))
    torch.testing.assert_close(features[..., 32:], reference_patches(siglip, pixels["siglip"]))


def test_pixels_are_brought_to_the_towers_dtype():
    backbone = VisionBackbone(
        "dinov2", VisionSpec({"": TowerSpec("vit_base_patch16_siglip_224", 32, SMALL)}), "letterbox", False
    )
    assert backbone.to(torch.bfloat16)(torch.randn(1, 3, 32, 32)).dtype == torch.bfloat16


@pytest.fixture
def small(tmp_path):
    """A registered single tower whose weights lie in a file."""
    spec = VisionSpec(
        {"": TowerSpec("vit_base_patch16_siglip_224", 32, SMALL)}, weights=tmp_path / "vision.safetensors"
    )
    register_vision_backbone("small-test-tower", spec)
    yield spec
    del VISION_BACKBONES["small-test-tower"]


@pytest.mark.parametrize("prefix", ["", "vision_backbone."])
def test_weights_from_a_file(small, prefix):
    source = VisionBackbone("x", small, "resize-naive", load_weights=False)
    save_file({f"{prefix}{name}": value for name, value in source.state_dict().items()}, small.weights)
    backbone, transform = get_vision_backbone_and_transform("small-test-tower", "resize-naive")
    for name, value in source.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), name
    assert transform is backbone.image_transform


def test_weights_that_are_not_there(small):
    with pytest.raises(UserError, match="the checkpoint does not exist: .*vision.safetensors"):
        get_vision_backbone_and_transform("small-test-tower", "resize-naive")
    get_vision_backbone_and_transform("small-test-tower", "resize-naive", inference_mode=True)


@pytest.mark.parametrize("content", [b"", b"not weights", None])
def test_weights_that_do_not_fit(small, content):
    if content is None:
        save_file({"featurizer.pos_embed": torch.ones(2)}, small.weights)
    else:
        small.weights.write_bytes(content)
    with pytest.raises(UserError, match="vision.safetensors"):
        get_vision_backbone_and_transform("small-test-tower", "resize-naive")


def test_weights_that_cannot_be_fetched(monkeypatch):
    def offline(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(
        UserError, match="vit_large_patch14_reg4_dinov2.lvd142m could not be fetched.*no route.*HF_HOME"
    ):
        get_vision_backbone_and_transform("dinov2-vit-l", "resize-naive")


def test_unknown_backbone_or_strategy():
    with pytest.raises(UserError, match="'vit-9000' is unknown.*clip-vit-b.*dinosiglip-vit-tiny-48px"):
        get_vision_backbone_and_transform("vit-9000", "resize-naive")
    with pytest.raises(UserError, match="'stretch' is unknown.*resize-naive, resize-crop, letterbox"):
        get_vision_backbone_and_transform("dinosiglip-vit-tiny-48px-init", "stretch")


RED, GREY = (200, 10, 20), (124, 116, 104)


@pytest.mark.parametrize("size", [(8, 8), (8, 3), (3, 8), (9, 4), (4, 9), (1, 7)])
def test_letterbox_pads_evenly_and_short_of_an_odd_margin(size):
    width, height = size
    side = max(size)
    left, top = (side - width) // 2, (side - height) // 2
    padded = LetterboxPad(GREY)(Image.new("RGB", size, RED))
    # As in Cobra, an odd margin leaves the square a pixel short; the centre crop that follows makes up for it.
    assert padded.size == (width + 2 * left, height + 2 * top)
    assert side - min(padded.size) == (width + height) % 2
    for x in range(padded.width):
        for y in range(padded.height):
            inside = left <= x < left + width and top <= y < top + height
            assert padded.getpixel((x, y)) == (RED if inside else GREY)


@pytest.mark.parametrize("strategy", ["resize-naive", "resize-crop", "letterbox"])
@pytest.mark.parametrize("size", [(48, 48), (97, 20), (20, 97), (1, 1), (3, 200)])
def test_every_strategy_gives_squares(strategy, size):
    pixels = build_transform(strategy, 24, *HALF)(picture(1, size))
    assert pixels.shape == (3, 24, 24)
    assert pixels.dtype == torch.float32
    assert pixels.isfinite().all()


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_strip_does_not_fill_the_memory(size):
    """A file of a few hundred bytes would be padded to 11 GB, or resized to 26 GB."""
    strip = Image.new("RGB", size)
    for strategy in ("letterbox", "resize-crop"):
        with pytest.raises(UserError, match=f"{size[0]} x {size[1]} pixels is too thin for {strategy}.*resize-naive"):
            build_transform(strategy, 384, *HALF)(strip)
    assert build_transform("resize-naive", 24, *HALF)(strip).shape == (3, 24, 24)


def halves(size):
    """A picture whose left half is black and whose right half is white."""
    image = Image.new("RGB", size, "white")
    image.paste("black", (0, 0, size[0] // 2, size[1]))
    return image


def test_strategies_differ_in_what_they_keep():
    wide = halves((96, 24))
    naive, crop, letterbox = (
        build_transform(name, 24, *HALF)(wide) for name in ("resize-naive", "resize-crop", "letterbox")
    )
    # All of the width, squeezed.
    assert (naive[:, :, 0] < -0.9).all() and (naive[:, :, -1] > 0.9).all()
    assert (crop[:, :, :11] < -0.9).all() and (crop[:, :, 13:] > 0.9).all()
    # A grey band above and below: int(0.5 * 255) of 255.
    band = torch.full((), (127 / 255 - 0.5) / 0.5)
    torch.testing.assert_close(letterbox[:, :8], band.expand(3, 8, 24), atol=0.02, rtol=0)
    assert (letterbox[:, 11:13, :10] < -0.9).all() and (letterbox[:, 11:13, 14:] > 0.9).all()
