"""Vision backbones and their image transforms."""

from typing import TYPE_CHECKING

from cobra.models.backbones.vision.specs import VISION_BACKBONES, VisionSpec, register_vision_backbone
from cobra.models.backbones.vision.tower_spec import TowerSpec
from cobra.util.lazy import lazy_names

if TYPE_CHECKING:
    from cobra.models.backbones.vision.backbone import VisionBackbone
    from cobra.models.backbones.vision.tower import Tower
    from cobra.models.backbones.vision.transforms import ImageTransform, PixelValues, build_transform

_TRANSFORMS = ("ImageTransform", "PixelValues", "build_transform")

__all__ = [
    "VISION_BACKBONES",
    "ImageTransform",
    "PixelValues",
    "Tower",
    "TowerSpec",
    "VisionBackbone",
    "VisionSpec",
    "build_transform",
    "register_vision_backbone",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "VisionBackbone": f"{__name__}.backbone",
        "Tower": f"{__name__}.tower",
        **dict.fromkeys(_TRANSFORMS, f"{__name__}.transforms"),
    },
)
