"""Vision backbones: one tower, or several whose features are joined on the channels."""

from typing import Any

import torch
from torch import Tensor, nn

from cobra.models.backbones.vision.specs import VisionSpec
from cobra.models.backbones.vision.tower import Tower, TowerSpec, build_timm_tower
from cobra.models.backbones.vision.transforms import FusedTransform, ImageTransform, PixelValues, build_transform
from cobra.models.tensors import load_strictly, read_module
from cobra.util.errors import UserError


class VisionBackbone(nn.Module):
    """One or several towers on the same image.

    Parameters are named `featurizer.*` for a single tower and `{dino,siglip,clip}_featurizer.*` for fused ones.

    Attributes:
        identifier: The id in the registry.
        image_transform: Function from a PIL image to pixels, or to pixels by tower.
        embed_dim: Channels of a patch, over all towers.
        num_patches: Patches of an image.
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
        super().__init__()
        self.identifier = identifier
        self.tower_names = list(spec.towers)
        fetches = load_weights and spec.pretrained and spec.weights is None
        transforms: dict[str, Any] = {}
        for name, builder in spec.towers.items():
            if isinstance(builder, TowerSpec):
                tower = build_timm_tower(builder, fetches, from_scratch=not spec.pretrained)
            else:
                tower = builder(fetches)
            self.add_module(_attribute(name), tower)
            transforms[name] = build_transform(
                image_resize_strategy, tower.image_size, tower.pixel_mean, tower.pixel_std
            )
        self.image_transform: ImageTransform = transforms[""] if "" in transforms else FusedTransform(transforms)
        self.embed_dim = sum(tower.embed_dim for tower in self.towers)
        patches = {name: self.tower(name).num_patches for name in self.tower_names}
        if len(set(patches.values())) > 1:
            raise UserError(f"the towers of {identifier!r} cut an image into {patches} patches: all must make as many")
        self.num_patches = self.towers[0].num_patches
        side = self.towers[0].image_size
        self.default_image_resolution = (3, side, side)
        if load_weights and spec.weights is not None:
            tensors = read_module(spec.weights, "vision_backbone.")
            load_strictly(self, tensors, f"vision backbone {identifier!r}", spec.weights)

    def tower(self, name: str) -> Tower:
        """Return the tower of that name; a single tower's name is empty."""
        return getattr(self, _attribute(name))

    @property
    def towers(self) -> list[Tower]:
        """The towers in the order of their features."""
        return [self.tower(name) for name in self.tower_names]

    def forward(self, pixel_values: PixelValues) -> Tensor:
        """Return patch features (batch, num_patches, embed_dim) of pixels (batch, 3, height, width), by tower."""
        if isinstance(pixel_values, dict):
            return torch.cat([self.tower(name)(pixel_values[name]) for name in self.tower_names], dim=2)
        return self.towers[0](pixel_values)


def _attribute(name: str) -> str:
    return f"{name}_featurizer" if name else "featurizer"
