"""Image transforms: from a picture to normalised pixels, in the three resize strategies."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from cobra.util.errors import UserError

# Pixels of one image or of a batch: a tensor, or one tensor a tower by the tower's name.
PixelValues: TypeAlias = Tensor | dict[str, Tensor]
ImageTransform: TypeAlias = Callable[[Image.Image], PixelValues]

RESIZE_STRATEGIES = ("resize-naive", "resize-crop", "letterbox")


class LetterboxPad:
    """Pad an image to a square with a colour, evenly on both sides."""

    def __init__(self, fill: tuple[int, ...]) -> None:
        self.fill = fill

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the RGB image padded to a square (of one pixel less where the margin is odd)."""
        width, height = image.size
        side = max(width, height)
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
        mean: Of each channel, in [0, 1].
        std: Of each channel.

    Raises:
        UserError: The strategy is unknown.
    """
    if strategy not in RESIZE_STRATEGIES:
        raise UserError(
            f"the image resize strategy {strategy!r} is unknown; the known ones are: {', '.join(RESIZE_STRATEGIES)}"
        )
    size: int | tuple[int, int] = (image_size, image_size) if strategy == "resize-naive" else image_size
    steps: list[Callable] = [Resize(size, interpolation=InterpolationMode.BICUBIC, antialias=True)]
    if strategy == "letterbox":
        steps.insert(0, LetterboxPad(tuple(int(channel * 255) for channel in mean)))
    return Compose([*steps, CenterCrop((image_size, image_size)), ToTensor(), Normalize(mean, std)])


class FusedTransform:
    """The transforms of several towers on one image."""

    def __init__(self, transforms: dict[str, Callable[[Image.Image], Tensor]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Image.Image) -> dict[str, Tensor]:
        """Return the pixels (3, height, width) for each tower."""
        return {name: transform(image) for name, transform in self.transforms.items()}


def stack_pixels(pixels: list[PixelValues]) -> PixelValues:
    """Stack the pixels of several images on a new first dimension, per tower where there are several."""
    first = pixels[0]
    if isinstance(first, dict):
        return {name: torch.stack([one[name] for one in pixels]) for name in first}  # type: ignore[index]
    return torch.stack(pixels)  # type: ignore[arg-type]


def map_pixels(pixels: PixelValues, function: Callable[[Tensor], Tensor]) -> PixelValues:
    """Apply a function to the pixels of every tower."""
    if isinstance(pixels, dict):
        return {name: function(value) for name, value in pixels.items()}
    return function(pixels)
