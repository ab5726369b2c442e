"""Registered vision backbones and the specs by which others are registered."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cobra.models.backbones.vision.tower_spec import TowerSpec
from cobra.util.errors import lookup

if TYPE_CHECKING:
    from cobra.models.backbones.vision.tower import Tower

DINO = "vit_large_patch14_reg4_dinov2.lvd142m"


@dataclass(frozen=True)
class VisionSpec:
    """One tower, or several whose features are joined on the channels in the given order."""

    towers: dict[str, TowerSpec | Callable[[bool], "Tower"]]
    """Towers by the prefix of their parameter names: `""` for a single one, `dino`, `siglip`, `clip` for fused ones.
    A function builds one that is not timm's (:class:`cobra.models.backbones.vision.tower.Tower`); it is told whether to
    fetch pretrained weights."""
    weights: Path | None = None
    """A safetensors file (names as in a checkpoint's `vision_backbone`, with or without that prefix). None takes timm's
    pretrained weights from the hub."""
    pretrained: bool = True
    """False leaves the towers at random initial values, for training them from scratch."""


def _single(timm_id: str, image_size: int) -> VisionSpec:
    return VisionSpec({"": TowerSpec(timm_id, image_size)})


def _clip(timm_id: str, image_size: int) -> TowerSpec:
    # OpenAI trained CLIP with the sigmoid approximation of GELU; timm 1.0's entries build the exact one.
    return TowerSpec(timm_id, image_size, {"act_layer": "quick_gelu"})


def _tiny(**options: Any) -> VisionSpec:
    sizes = {"patch_size": 16, "embed_dim": 64, "depth": 4, "num_heads": 4}
    return VisionSpec(
        {
            # DINOv2's layer scale starts at 1e-5, which holds a tower still for as long as this one is trained.
            "dino": TowerSpec(DINO, 48, {**sizes, "init_values": 0.5}),
            "siglip": TowerSpec("vit_base_patch16_siglip_256", 48, sizes),
        },
        **options,
    )


TINY_WEIGHTS = Path(__file__).parents[2] / "tiny" / "model.safetensors"

VISION_BACKBONES: dict[str, VisionSpec] = {
    "clip-vit-b": VisionSpec({"": _clip("vit_base_patch16_clip_224.openai", 224)}),
    "clip-vit-l": VisionSpec({"": _clip("vit_large_patch14_clip_224.openai", 224)}),
    "clip-vit-l-336px": VisionSpec({"": _clip("vit_large_patch14_clip_336.openai", 336)}),
    "siglip-vit-so400m": _single("vit_so400m_patch14_siglip_224.webli", 224),
    "siglip-vit-so400m-384px": _single("vit_so400m_patch14_siglip_384.webli", 384),
    "siglip-vit-b16-224px": _single("vit_base_patch16_siglip_224.webli", 224),
    "siglip-vit-b16-256px": _single("vit_base_patch16_siglip_256.webli", 256),
    "siglip-vit-b16-384px": _single("vit_base_patch16_siglip_384.webli", 384),
    "dinov2-vit-l": _single(DINO, 224),
    "in1k-vit-l": _single("vit_large_patch16_224.augreg_in21k_ft_in1k", 224),
    "dinosiglip-vit-so-384px": VisionSpec(
        {"dino": TowerSpec(DINO, 384), "siglip": TowerSpec("vit_so400m_patch14_siglip_384.webli", 384)}
    ),
    "dinoclip-vit-l-336px": VisionSpec(
        {"dino": TowerSpec(DINO, 336), "clip": _clip("vit_large_patch14_clip_336.openai", 336)}
    ),
    "dinosiglip-vit-tiny-48px": _tiny(weights=TINY_WEIGHTS),
    # The same towers at random initial values: where the training of cobra-tiny starts.
    "dinosiglip-vit-tiny-48px-init": _tiny(pretrained=False),
}


def register_vision_backbone(vision_backbone_id: str, spec: VisionSpec) -> None:
    """Make a vision backbone of any size known under an id, for research and tests; a known id is replaced."""
    VISION_BACKBONES[vision_backbone_id] = spec


def vision_spec(vision_backbone_id: str) -> VisionSpec:
    """Return the registered specification, or raise a UserError that lists the known ids."""
    return lookup(VISION_BACKBONES, vision_backbone_id, "the vision backbone")
