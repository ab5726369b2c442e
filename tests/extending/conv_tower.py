"""A vision tower that is not timm's, for `--model.vision_backbone_id conv-48px`: three strided convolutions."""

from itertools import pairwise

from torch import Tensor, nn

from cobra.models.backbones.vision import Tower, VisionSpec, register_vision_backbone

SIDES, WIDTHS = (48, 24, 12, 6), (3, 16, 32, 64)


class ConvTower(Tower):
    """Convolutions of stride 2, from 48 x 48 pixels to 6 x 6 patches."""

    image_size, num_patches, embed_dim = SIDES[0], SIDES[-1] ** 2, WIDTHS[-1]
    pixel_mean = pixel_std = (0.5, 0.5, 0.5)

    def __init__(self) -> None:
        super().__init__()
        pairs = pairwise(WIDTHS)
        self.layers = nn.ModuleList(nn.Conv2d(*pair, kernel_size=3, stride=2, padding=1) for pair in pairs)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return patch features (batch, 36, 64) of pixels (batch, 3, 48, 48)."""
        for layer in self.layers:
            pixels = nn.functional.gelu(layer(pixels.to(layer.weight)))
        return pixels.flatten(2).transpose(1, 2)

    def flops(self) -> tuple[float, float]:
        """Return the operations of an image, and those of the first layer."""
        each = [2.0 * layer.weight.numel() * side**2 for layer, side in zip(self.layers, SIDES[1:], strict=True)]
        return sum(each), each[0]


# The function is told whether to fetch pretrained weights; here there are none, so that a run trains the tower.
register_vision_backbone("conv-48px", VisionSpec({"": lambda pretrained: ConvTower()}, pretrained=False))
