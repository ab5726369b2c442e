"""Vision backbones: one tower, or several whose features are joined on the channels, and their image transform."""

from typing import Any

from torch import nn

from cobra.models.backbones.vision.specs import VisionSpec
from cobra.models.backbones.vision.tower import Tower, Towers, timm_tower
from cobra.models.backbones.vision.tower_spec import TowerSpec
from cobra.models.backbones.vision.transforms import FusedTransform, ImageTransform, build_transform
from cobra.models.hub import check_hub
from cobra.models.tensors import load_strictly, read_module
from cobra.util.errors import UserError
from cobra.util.redaction import reason

# Towers trained from scratch start with positions as strong as their patches; timm's 0.02 is 30 times weaker.
_SCRATCH_POSITION_STD = 0.5


class VisionBackbone(Towers):
    """One or several towers on the same image, with the transform that makes their pixels.

    Attributes:
        image_transform: Function from a PIL image to pixels, or to pixels by tower.
        default_image_resolution: (3, height, width).
    """

    def __init__(
        self, identifier: str, spec: VisionSpec, image_resize_strategy: str, load_weights: bool = True
    ) -> None:
        """Build the towers.

        Args:
            identifier: Name of the backbone.
            spec: The towers.
            image_resize_strategy: See :func:`build_transform`.
            load_weights: False leaves random values, for a checkpoint that brings the towers with it.

        Raises:
            UserError: The strategy is unknown, towers differ in their patches, or weights are absent, damaged, of
                another architecture or not to be fetched.
        """
        fetches = load_weights and spec.pretrained and spec.weights is None
        super().__init__(
            identifier,
            {
                name: _build_timm_tower(builder, fetches, from_scratch=not spec.pretrained)
                if isinstance(builder, TowerSpec)
                else builder(fetches)
                for name, builder in spec.towers.items()
            },
        )
        transforms = {
            name: build_transform(image_resize_strategy, tower.image_size, tower.pixel_mean, tower.pixel_std)
            for name, tower in zip(self.tower_names, self.towers, strict=True)
        }
        self.image_transform: ImageTransform = transforms[""] if "" in transforms else FusedTransform(transforms)
        side = self.towers[0].image_size
        self.default_image_resolution = (3, side, side)
        if load_weights and spec.weights is not None:
            tensors = read_module(spec.weights, "vision_backbone.")
            load_strictly(self, tensors, f"vision backbone {identifier!r}", spec.weights)


def _build_timm_tower(spec: TowerSpec, pretrained: bool, from_scratch: bool) -> Tower:
    """Build a ViT of timm as a tower.

    Args:
        spec: The architecture.
        pretrained: Fetch timm's weights from the hub.
        from_scratch: Draw initial values that suit training without pretrained weights.

    Raises:
        UserError: The weights cannot be fetched.
    """
    if pretrained:
        check_hub()
    try:
        vit: Any = timm_tower(spec, pretrained)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"the pretrained weights of {spec.timm_id} could not be fetched from the hub ({reason(error)}): check the "
            "network, or fill the hub's cache (HF_HOME) on a machine that has one; cobra-tiny needs no download"
        ) from error
    if from_scratch:
        nn.init.normal_(vit.pos_embed, std=_SCRATCH_POSITION_STD)
    return vit
