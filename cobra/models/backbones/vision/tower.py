"""Vision towers: the interface that backbones, training and plans use, and ViTs of timm as towers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import timm
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from cobra.models.backbones.vision.tower_spec import TowerSpec
from cobra.models.hub import check_hub
from cobra.util.errors import UserError
from cobra.util.redaction import reason

# Towers trained from scratch start with positions as strong as their patches; timm's 0.02 is 30 times weaker.
_SCRATCH_POSITION_STD = 0.5


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


def build_timm_tower(spec: TowerSpec, pretrained: bool, from_scratch: bool) -> Tower:
    """Build a ViT of timm as a tower; its parameters keep timm's names.

    Args:
        spec: The architecture.
        pretrained: Fetch timm's weights from the hub.
        from_scratch: Draw initial values that suit training without pretrained weights.

    Raises:
        UserError: The weights cannot be fetched.
    """
    kwargs = dict(spec.kwargs)
    if isinstance(kwargs.get("act_layer"), str):
        kwargs["act_layer"] = timm.layers.get_act_layer(kwargs["act_layer"])
    if pretrained:
        check_hub()
    try:
        vit: Any = timm.create_model(
            spec.timm_id, pretrained=pretrained, num_classes=0, img_size=spec.image_size, **kwargs
        )
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"the pretrained weights of {spec.timm_id} could not be fetched from the hub ({reason(error)}): check the "
            "network, or fill the hub's cache (HF_HOME) on a machine that has one; cobra-tiny needs no download"
        ) from error
    if from_scratch:
        nn.init.normal_(vit.pos_embed, std=_SCRATCH_POSITION_STD)
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
