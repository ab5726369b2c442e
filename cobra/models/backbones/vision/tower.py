"""Vision towers: the interface that backbones, training and plans use."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor, nn


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
