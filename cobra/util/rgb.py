"""Pictures of any mode as RGB of 8 bits."""

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture as RGB of 8 bits, the way a viewer shows it.

    Transparent pixels show white. Of 16 bits, and of whole or floating-point numbers, all levels are kept apart: Pillow
    would make white of everything above 255. The same as `convert("RGB")` for all other pictures.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _to_grey(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    pixels = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    # A third of the time of alpha_composite, and the same pixels.
    white = Image.new("RGB", pixels.size, "white")
    white.paste(pixels, mask=pixels.getchannel("A"))
    return white


def _to_grey(image: Image.Image) -> Image.Image:
    """Return a picture of wide numbers in 8 bits; what exceeds black or white is cut, and NaN is black."""
    stored = np.asarray(image)
    values = np.nan_to_num(stored.astype(np.float32), copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    if image.mode.startswith("I;16") or image.format == "PPM" and image.mode == "I":
        white = 65535.0
    else:
        # The first of these that no pixel exceeds, or the highest pixel.
        peak = float(values.max(initial=0))
        whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((white for white in whites if peak <= white), peak)
    # In place: a picture may have 300 million pixels.
    values *= 255 / white
    grey = np.rint(np.clip(values, 0, 255, out=values), out=values).astype(np.uint8)
    if "transparency" in image.info:
        grey[stored == image.info["transparency"]] = 255
    return Image.fromarray(grey)
