"""Vision backbones: one or several ViTs of timm, whose patch features come from the second-to-last block."""

from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from cobra.models.backbones.vision.specs import TowerSpec, VisionSpec
from cobra.models.backbones.vision.transforms import FusedTransform, ImageTransform, PixelValues, build_transform
from cobra.models.tensors import load_strictly, read_tensors
from cobra.util.errors import UserError
from cobra.util.network import check_network_variables
from cobra.util.redaction import reason

# Towers trained from scratch start with positions as strong as their patches; timm's 0.02 is 30 times weaker.
_SCRATCH_POSITION_STD = 0.5


class VisionBackbone(nn.Module):
    """One or several ViTs.

    Parameters are named `featurizer.*` for a single tower and `{dino,siglip,clip}_featurizer.*` for fused ones.

    Attributes:
        identifier: The id in the registry.
        image_transform: From a PIL image to pixels, or to pixels by tower.
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
        """
        super().__init__()
        self.identifier = identifier
        self.tower_names = list(spec.towers)
        from_hub = load_weights and spec.pretrained and spec.weights is None
        transforms: dict[str, Any] = {}
        for name, tower in spec.towers.items():
            vit = _create_tower(tower, from_hub)
            if not spec.pretrained:
                nn.init.normal_(vit.pos_embed, std=_SCRATCH_POSITION_STD)
            self.add_module(_attribute(name), vit)
            data = resolve_model_data_config(vit)
            transforms[name] = build_transform(image_resize_strategy, tower.image_size, data["mean"], data["std"])
        self.image_transform: ImageTransform = transforms[""] if "" in transforms else FusedTransform(transforms)
        towers = [self.tower(name) for name in self.tower_names]
        self.embed_dim: int = sum(vit.embed_dim for vit in towers)
        self.num_patches: int = towers[0].patch_embed.num_patches
        side = next(iter(spec.towers.values())).image_size
        self.default_image_resolution = (3, side, side)
        if load_weights and spec.weights is not None:
            self._load_file(spec)

    def _load_file(self, spec: VisionSpec) -> None:
        path = spec.weights
        assert path is not None
        if not path.is_file():
            raise UserError(f"the weights of the vision backbone {self.identifier!r} do not exist: {path}")
        prefix = "vision_backbone."
        tensors = read_tensors(path)
        prefixed = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        load_strictly(self, prefixed or tensors, f"vision backbone {self.identifier!r}", path)

    def tower(self, name: str) -> Any:
        """Return the ViT of that name; a single tower's name is empty."""
        return getattr(self, _attribute(name))

    def forward(self, pixel_values: PixelValues) -> Tensor:
        """Return patch features (batch, num_patches, embed_dim) of pixels (batch, 3, height, width), by tower."""
        if isinstance(pixel_values, dict):
            return torch.cat([_patches(self.tower(name), pixel_values[name]) for name in self.tower_names], dim=2)
        return _patches(self.tower(self.tower_names[0]), pixel_values)


def _attribute(name: str) -> str:
    return f"{name}_featurizer" if name else "featurizer"


def _create_tower(tower: TowerSpec, from_hub: bool) -> Any:
    kwargs = dict(tower.kwargs)
    if isinstance(kwargs.get("act_layer"), str):
        kwargs["act_layer"] = timm.layers.get_act_layer(kwargs["act_layer"])
    if from_hub:
        check_network_variables()
    try:
        return timm.create_model(tower.timm_id, pretrained=from_hub, num_classes=0, img_size=tower.image_size, **kwargs)
    except (OSError, RuntimeError) as error:
        if not from_hub:
            raise
        raise UserError(
            f"the pretrained weights of {tower.timm_id} could not be fetched from the hub ({reason(error)}): check the "
            "network, or fill the hub's cache (HF_HOME) on a machine that has one; cobra-tiny needs no download"
        ) from error


def _patches(vit: Any, pixels: Tensor) -> Tensor:
    """Return the second-to-last block's output without the final norm and without class and register tokens."""
    features = vit.forward_intermediates(
        pixels.to(vit.patch_embed.proj.weight),
        indices=[len(vit.blocks) - 2],
        norm=False,
        stop_early=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    return features[0]
