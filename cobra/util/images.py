"""Opening pictures: the one place where files become pixels."""

import warnings
from pathlib import Path

from PIL import Image

# Only formats with a decoder inside Pillow: EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")


def read_rgb(path: Path | str) -> Image.Image:
    """Decode the first picture of a file to RGB, (height, width, 3) of 8 bits, as it is stored: EXIF does not turn it.

    Args:
        path: A file in one of :data:`FORMATS`, told by its content.

    Raises:
        FileNotFoundError: There is no such file.
        Exception: Whatever the decoder raises on a file that is not a whole picture: errors of almost any kind,
            NotImplementedError and struct.error among them. A picture of more than twice
            `PIL.Image.MAX_IMAGE_PIXELS` is a DecompressionBombError.
    """
    with warnings.catch_warnings():
        # Of odd palettes, damaged EXIF and large pictures, which all decode.
        warnings.simplefilter("ignore")
        with Image.open(path, formats=FORMATS) as image:
            return image.convert("RGB")
