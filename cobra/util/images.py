"""Opening pictures: the one place where files become pixels.

Pillow does it, because nothing at hand is faster with the same pixels. On 120 photos of COCO, decoded and resized to
384 pixels on one core (166 a second), its draft mode took 1.00 of its time, torchvision's decode_image 1.03 and
simplejpeg 1.01, all with a largest difference of 0: they are the same libjpeg-turbo, and 60 % of the time is the
resize. Draft mode would act on pictures of 768 pixels and more, and change them; simplejpeg differs by one level in
CMYK and reads JPEG alone; torchvision reads 16-bit PNG to 16 bits. `benchmarks/dataset.py` measures it again.
"""

import warnings
from pathlib import Path
from typing import IO

from PIL import Image

# Only formats with a decoder inside Pillow: EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")


def read_rgb(path: Path | str | IO[bytes]) -> Image.Image:
    """Decode the first picture of a file to RGB, (height, width, 3) of 8 bits, as it is stored: EXIF does not turn it.

    Args:
        path: A file in one of :data:`FORMATS`, told by its content, or its bytes.

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


def check_decodes(path: Path | str | IO[bytes]) -> None:
    """Decode the first picture of a file as :func:`read_rgb` would, and keep nothing of it.

    JPEG is decoded to an eighth of its size: all its data are read and checked as ever, in half the time or less.

    Args:
        path: See :func:`read_rgb`.

    Raises:
        Exception: As :func:`read_rgb`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=FORMATS) as image:
            image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
            image.convert("RGB")
