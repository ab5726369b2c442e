"""Vision backbones and their image transforms."""

from cobra.models.backbones.vision.backbone import VisionBackbone
from cobra.models.backbones.vision.specs import VISION_BACKBONES, VisionSpec, register_vision_backbone
from cobra.models.backbones.vision.tower import Tower, TowerSpec
from cobra.models.backbones.vision.transforms import ImageTransform, PixelValues, build_transform

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
