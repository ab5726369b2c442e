"""Vision towers: the interface that backbones, training and plans use, and ViTs of timm as towers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from cobra.models.backbones.vision.tower_spec import TowerSpec
from cobra.models.backbones.vision.transforms import PixelValues
from cobra.util.errors import UserError


class Tower(nn.Module, ABC):
    """Base of all vision towers: an image becomes `num_patches` vectors of `embed_dim` channels.

    To add one that is not timm's, derive from this class, implement `forward` and `flops`, set the attributes, and
    register a backbone whose spec holds a function that builds it::

        register_vision_backbone("my-vit-96px", VisionSpec({"": lambda pretrained: MyTower(pretrained)}))

    Its parameters are named `featurizer.*` in checkpoints, or `{name}_featurizer.*` under a name other than `""`.

    Attributes:
        embed_dim: Channels of a patch.
        num_patches: Patches of an image.
        image_size: Side of the square image in pixels.
        pixel_mean: Mean of each colour channel, in [0, 1], that pixels are normalised with.
        pixel_std: Standard deviation of each colour channel.
        undecayed_names: Parameters of two or more dimensions, by their names in the tower, that weight decay spares.
    """

    embed_dim: int
    num_patches: int
    image_size: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    undecayed_names: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Return patch features (batch, num_patches, embed_dim) of pixels (batch, 3, image_size, image_size)."""

    @abstractmethod
    def flops(self) -> tuple[float, float]:
        """Return the operations of the forward pass of an image, and how many of them read the pixels.

        A multiplication and an addition are two operations. Those that read pixels have no gradient for their input.
        """

    def used_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters that the features depend on, and that so get gradients; by default all."""
        return self.parameters()


def timm_tower(spec: TowerSpec, pretrained: bool = False) -> Tower:
    """Build a ViT of timm as a tower; its parameters keep timm's names.

    Raises:
        OSError: Timm's weights are asked for and cannot be fetched; or a RuntimeError.
    """
    kwargs = dict(spec.kwargs)
    if isinstance(kwargs.get("act_layer"), str):
        kwargs["act_layer"] = timm.layers.get_act_layer(kwargs["act_layer"])
    vit: Any = timm.create_model(spec.timm_id, pretrained=pretrained, num_classes=0, img_size=spec.image_size, **kwargs)
    # Derived from the ViT's own class, so that the module stays as it is.
    vit.__class__ = type("TimmTower", (_TimmTower, type(vit)), {})
    vit.num_patches, vit.image_size = vit.patch_embed.num_patches, spec.image_size
    data = resolve_model_data_config(vit)
    vit.pixel_mean, vit.pixel_std = data["mean"], data["std"]
    return vit


class _TimmTower(Tower):
    """Methods that make a ViT of timm a tower; the last block and the final norm are not computed."""

    undecayed_names = ("cls_token", "reg_token", "pos_embed", "attn_pool.latent")
    # Attributes of timm's ViT.
    patch_embed: Any
    norm_pre: Any
    blocks: Any
    num_prefix_tokens: int

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the second-to-last block's output without the final norm and without class and register tokens."""
        vit: Any = self
        features = vit.forward_intermediates(
            pixels.to(self.patch_embed.proj.weight),
            indices=[len(self.blocks) - 2],
            norm=False,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return features[0]

    def flops(self) -> tuple[float, float]:
        """Return the operations of an image: all, and those of the patch embedding."""
        embed = 2.0 * self.patch_embed.proj.weight.shape[1:].numel() * self.embed_dim * self.num_patches
        # Vectors of an image in the blocks: patches, class and register tokens.
        tokens = self.num_patches + self.num_prefix_tokens
        linears = [layer for layer in self.blocks[:-1].modules() if isinstance(layer, nn.Linear)]
        matrices = 2.0 * sum(layer.in_features * layer.out_features for layer in linears) * tokens
        attention = 4.0 * tokens**2 * self.embed_dim * (len(self.blocks) - 1)
        return embed + matrices + attention, embed

    def used_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters up to the second-to-last block."""
        yield from self.parameters(recurse=False)
        for part in (self.patch_embed, self.norm_pre, *self.blocks[:-1]):
            yield from part.parameters()


class Towers(nn.Module):
    """One or several towers on the same image, whose features are joined on the channels.

    Parameters are named `featurizer.*` for a single tower and `{dino,siglip,clip}_featurizer.*` for fused ones.

    Attributes:
        identifier: Their name.
        tower_names: Names of the towers in the order of their features; a single tower's is empty.
        embed_dim: Channels of a patch, over all towers.
        num_patches: Patches of an image.
    """

    def __init__(self, identifier: str, towers: Mapping[str, Tower]) -> None:
        """Join the towers; raise a UserError where they differ in their number of patches."""
        super().__init__()
        self.identifier = identifier
        self.tower_names = list(towers)
        for name, tower in towers.items():
            self.add_module(_attribute(name), tower)
        self.embed_dim = sum(tower.embed_dim for tower in self.towers)
        patches = {name: tower.num_patches for name, tower in towers.items()}
        if len(set(patches.values())) > 1:
            raise UserError(f"the towers of {identifier!r} cut an image into {patches} patches: all must make as many")
        self.num_patches = self.towers[0].num_patches

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
