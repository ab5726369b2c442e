"""Resize strategies on pictures whose pixels can be told by hand."""

import pytest
from PIL import Image

from cobra.models.backbones.vision import build_transform
from cobra.models.backbones.vision.transforms import LetterboxPad
from cobra.util.errors import UserError

FILL, PICTURE = (1, 2, 3), (200, 100, 50)


# (size, size after padding, offset of the picture): an odd margin loses its last pixel on either axis.
MARGINS = [
    ((4, 10), (10, 10), (3, 0)),
    ((10, 4), (10, 10), (0, 3)),
    ((5, 10), (9, 10), (2, 0)),
    ((10, 5), (10, 9), (0, 2)),
    ((9, 10), (9, 10), (0, 0)),
    ((7, 7), (7, 7), (0, 0)),
]


@pytest.mark.parametrize(("size", "padded", "offset"), MARGINS)
def test_letterbox_pads_evenly_on_both_sides(size, padded, offset):
    result = LetterboxPad(FILL)(Image.new("RGB", size, PICTURE))
    assert result.size == padded
    left, top = offset
    for x in range(padded[0]):
        for y in range(padded[1]):
            inside = left <= x < left + size[0] and top <= y < top + size[1]
            assert result.getpixel((x, y)) == (PICTURE if inside else FILL), (x, y)


@pytest.mark.parametrize("strategy", ["resize-naive", "resize-crop", "letterbox"])
@pytest.mark.parametrize("size", [(3, 90), (90, 3), (31, 32), (1, 1)])
def test_every_picture_becomes_a_square(strategy, size):
    mean, deviation = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    pixels = build_transform(strategy, 28, mean, deviation)(Image.new("RGB", size, (255, 255, 255)))
    assert tuple(pixels.shape) == (3, 28, 28)
    # The padding of the letterbox is the mean, and the bicubic filter undershoots a little beside white.
    assert pixels.max() <= 1 and pixels.min() >= (-0.1 if strategy == "letterbox" else 0.99)


def test_an_unknown_strategy_names_the_known_ones():
    with pytest.raises(UserError, match="resize-naive, resize-crop, letterbox"):
        build_transform("stretch", 28, (0.5,) * 3, (0.5,) * 3)
