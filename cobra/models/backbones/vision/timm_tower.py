"""Towers of timm: ViTs whose patch features come from the second-to-last block."""

from collections.abc import Iterator
from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from cobra.models.backbones.vision.specs import TowerSpec
from cobra.models.backbones.vision.tower import Tower
from cobra.util.errors import UserError
from cobra.util.network import check_network_variables
from cobra.util.redaction import reason

# Towers trained from scratch start with positions as strong as their patches; timm's 0.02 is 30 times weaker.
_SCRATCH_POSITION_STD = 0.5


def build_timm_tower(spec: TowerSpec, pretrained: bool, from_scratch: bool) -> Tower:
    """Build a ViT of timm as a tower; its parameters keep timm's names.

    Args:
        spec: The architecture.
        pretrained: Fetch timm's weights from the hub.
        from_scratch: Draw initial values that suit training without pretrained weights.

    Raises:
        UserError: The weights cannot be fetched.
    """
    vit = _create(spec, pretrained)
    if from_scratch:
        nn.init.normal_(vit.pos_embed, std=_SCRATCH_POSITION_STD)
    # Derived from the ViT's own class, so that the module stays as it is.
    vit.__class__ = type("TimmTower", (_TimmTower, type(vit)), {})
    vit.num_patches, vit.image_size = vit.patch_embed.num_patches, spec.image_size
    data = resolve_model_data_config(vit)
    vit.pixel_mean, vit.pixel_std = data["mean"], data["std"]
    return vit


def _create(spec: TowerSpec, pretrained: bool) -> Any:
    kwargs = dict(spec.kwargs)
    if isinstance(kwargs.get("act_layer"), str):
        kwargs["act_layer"] = timm.layers.get_act_layer(kwargs["act_layer"])
    if pretrained:
        check_network_variables()
    try:
        return timm.create_model(spec.timm_id, pretrained=pretrained, num_classes=0, img_size=spec.image_size, **kwargs)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"the pretrained weights of {spec.timm_id} could not be fetched from the hub ({reason(error)}): check the "
            "network, or fill the hub's cache (HF_HOME) on a machine that has one; cobra-tiny needs no download"
        ) from error


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

    @property
    def _tokens(self) -> int:
        """Vectors of an image in the blocks: patches, class and register tokens."""
        return self.num_patches + self.num_prefix_tokens

    def flops(self) -> tuple[float, float]:
        """Return the operations of an image: all, and those of the patch embedding."""
        embed = 2.0 * self.patch_embed.proj.weight.shape[1:].numel() * self.embed_dim * self.num_patches
        linears = [layer for layer in self.blocks[:-1].modules() if isinstance(layer, nn.Linear)]
        matrices = 2.0 * sum(layer.in_features * layer.out_features for layer in linears) * self._tokens
        attention = 4.0 * self._tokens**2 * self.embed_dim * (len(self.blocks) - 1)
        return embed + matrices + attention, embed

    def used_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters up to the second-to-last block."""
        yield from self.parameters(recurse=False)
        for part in (self.patch_embed, self.norm_pre, *self.blocks[:-1]):
            yield from part.parameters()
