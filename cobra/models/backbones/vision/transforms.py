"""Image transforms: pictures to normalised pixels, in the three resize strategies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torchvision.transforms
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, ToTensor

from cobra.util.errors import UserError, check_known

# Pixels of one image or of a batch: a tensor, or one tensor a tower by the tower's name.
PixelValues: TypeAlias = Tensor | dict[str, Tensor]
ImageTransform: TypeAlias = Callable[[Image.Image], PixelValues]

RESIZE_STRATEGIES = ("resize-naive", "resize-crop", "letterbox")

# Pixels that a picture may grow to, as many as Pillow opens at most: a strip of 1 x 60,000 would be padded to 11 GB.
_MOST_PIXELS = 180_000_000


def _check_growth(image: Image.Image, pixels: int, strategy: str) -> None:
    """Raise a UserError where a strategy would blow a picture up beyond all measure."""
    if pixels > _MOST_PIXELS:
        raise UserError(
            f"a picture of {image.width} x {image.height} pixels is too thin for {strategy}, which would make "
            f"{pixels:,} pixels of it: take it out, or use the image resize strategy resize-naive"
        )


class Resize(torchvision.transforms.Resize):
    """torchvision's Resize, bicubic and antialiased, for pictures of any shape.

    A size that is a number is the length of the shorter side; a pair is (height, width).
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__(size, interpolation=InterpolationMode.BICUBIC, antialias=True)

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the resized picture.

        Raises:
            UserError: It is so thin that its longer side would fill the memory.
        """
        if isinstance(self.size, int):
            _check_growth(image, self.size**2 * max(image.size) // min(image.size), "resize-crop")
        return super().forward(image)


@dataclass
class LetterboxPad:
    """Pad an image to a square with a colour, evenly on both sides."""

    fill: tuple[int, ...]

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the RGB image padded to a square (of one pixel less where the margin is odd).

        Raises:
            UserError: It is so thin that the square would fill the memory.
        """
        width, height = image.size
        side = max(width, height)
        _check_growth(image, side * side, "letterbox")
        left, top = (side - width) // 2, (side - height) // 2
        padded = Image.new(image.mode, (width + 2 * left, height + 2 * top), self.fill)
        padded.paste(image, (left, top))
        return padded


def build_transform(
    strategy: str, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Image.Image], Tensor]:
    """Return a transform from an RGB image to pixels (3, image_size, image_size), fp32.

    Args:
        strategy: `resize-naive` squeezes to a square, `resize-crop` cuts the longer side, `letterbox` pads the shorter.
        image_size: Side in pixels.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.

    Raises:
        UserError: The strategy is unknown.
    """
    check_known(strategy, RESIZE_STRATEGIES, "the image resize strategy")
    steps: list[Callable] = [Resize((image_size, image_size) if strategy == "resize-naive" else image_size)]
    if strategy == "letterbox":
        steps.insert(0, LetterboxPad(tuple(int(channel * 255) for channel in mean)))
    return Compose([*steps, CenterCrop((image_size, image_size)), ToTensor(), Normalize(mean, std)])


@dataclass
class FusedTransform:
    """The transforms of several towers on one image."""

    transforms: dict[str, Callable[[Image.Image], Tensor]]

    def __call__(self, image: Image.Image) -> dict[str, Tensor]:
        """Return the pixels (3, height, width) for each tower."""
        return {name: transform(image) for name, transform in self.transforms.items()}


def map_pixels(pixels: PixelValues, function: Callable[[Tensor], Tensor]) -> PixelValues:
    """Apply a function to the pixels of every tower."""
    if isinstance(pixels, dict):
        return {name: function(value) for name, value in pixels.items()}
    return function(pixels)
