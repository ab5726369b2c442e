"""Vision towers and image transforms against outputs of the original Cobra."""

import re

import pytest
import torch
from golden_set import PIXELS, close
from PIL import Image
from timm.data import resolve_model_data_config

from cobra.models.backbones.vision import build_transform
from cobra.models.backbones.vision.transforms import LetterboxPad


def colours(golden, vlm, name):
    """The mean and deviation of the pixels that the tower takes."""
    config = resolve_model_data_config(vlm.vision_backbone.tower(golden.tower(name)))
    return config["mean"], config["std"]


def test_golden_transforms(golden, golden_vlm):
    size, arrays = golden.json("transforms.json")["image_size"], golden.npz("transforms.npz")
    images = golden.path("images")
    assert arrays
    for key, expected in arrays.items():
        strategy, _, rest = key.partition("/")
        image, _, tower = rest.rpartition("/")
        transform = build_transform(strategy, size, *colours(golden, golden_vlm, tower))
        with Image.open(images / image) as picture:
            close(transform(picture.convert("RGB")), expected, **PIXELS)


def numbers(text):
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def words_and_numbers(text):
    return [word for word in re.findall(r"(\w+)\(", text) if word != "tensor"], numbers(text)


def test_golden_transforms_have_cobras_steps(golden, golden_vlm):
    """At the set's size and at the real one, where there are no pixels to compare."""
    facts = golden.json("transforms.json")
    for key, size in (("steps", facts["image_size"]), ("steps_at_384", 384)):
        for strategy, towers in facts[key].items():
            for tower, expected in towers.items():
                transform = build_transform(strategy, size, *colours(golden, golden_vlm, tower))
                parts = [
                    f"LetterboxPad{step.fill}" if isinstance(step, LetterboxPad) else str(step)
                    for step in transform.transforms
                ]
                words, values = words_and_numbers(f"Compose({' '.join(parts)}")
                expected_words, expected_values = words_and_numbers(expected)
                assert words == expected_words, (key, tower)
                # The set prints means and deviations with four decimals.
                assert values == pytest.approx(expected_values, abs=5.1e-5), (key, tower)


@torch.no_grad()
def test_golden_vision_facts(golden, golden_vlm):
    facts, vision = golden.json("observed.json")["vision"], golden_vlm.vision_backbone
    assert vision.num_patches == facts["num_patches"]
    assert vision.embed_dim == facts["embed_dim"]
    assert list(vision.default_image_resolution) == facts["default_image_resolution"]
    named = {key.removesuffix("_feat"): shape for key, shape in facts.items() if key.endswith("_feat")}
    assert len(named) == len(vision.tower_names)
    # One fact for the set's first tower.
    assert vision.tower(golden.tower(next(iter(named)))).blocks[0].norm1.eps == facts["ln_eps"]
    for name, shape in named.items():
        tower = vision.tower(golden.tower(name))
        assert [tower.patch_embed.num_patches, tower.embed_dim] == shape[1:]
        if f"{name}_forward_features" in facts:
            assert tower.patch_embed.num_patches + tower.num_prefix_tokens == facts[f"{name}_forward_features"][1]
        config, expected = resolve_model_data_config(tower), facts[f"{name}_data_cfg"]
        assert [3, *tower.patch_embed.img_size] == numbers(expected["input_size"])
        for key in ("mean", "std"):
            assert list(config[key]) == numbers(expected[key]), (name, key)
        assert config["interpolation"] == expected["interpolation"]
        assert facts[f"{name}_act"].startswith(type(tower.blocks[0].mlp.act).__name__), name


def test_golden_position_embeddings_are_resampled_alike(golden):
    """The real towers' position embeddings are brought to 384 px by timm as Cobra's older timm did."""
    from timm.layers import resample_abs_pos_embed

    # In the order of the file: what is resampled, and what comes out of it, for one grid or more.
    (_, source), *resampled = golden.npz("pos_embed_resample.npz").items()
    assert resampled
    for name, expected in resampled:
        grid = [int(side) for side in re.findall(r"\d+", name)]
        close(resample_abs_pos_embed(source, grid, num_prefix_tokens=0), expected, atol=1e-5, rtol=0)
