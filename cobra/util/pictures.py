"""Pictures in whatever form a caller has them: by path or address, encoded, as an array, or decoded already."""

import os
from typing import TypeAlias

import numpy as np
from PIL import Image

from cobra.util.errors import UserError
from cobra.util.fetch_image import decode_image, open_image

ImageLike: TypeAlias = Image.Image | np.ndarray | str | os.PathLike[str] | bytes
"""A PIL image; an array of uint8 (height, width, 3 or 4) or (height, width), its channels red, green, blue; the path or
address of a file; or the bytes of one."""

_FORMS = (Image.Image, np.ndarray, str, os.PathLike, bytes)
_EXPECTED = (
    "expected a PIL image, a path or address, the bytes of a file, or an array of uint8 (height, width, 3); None asks "
    "without an image"
)


def is_picture(value: object) -> bool:
    """Return True if a value is one picture, by its type; a list of them is not."""
    return isinstance(value, _FORMS)


def as_picture(image: ImageLike) -> Image.Image:
    """Return a picture decoded; one of a path, an address or bytes as RGB, turned upright as its EXIF data say.

    PIL images and arrays are taken as they are.

    Raises:
        UserError: It is none, as the error says in which way; or see :func:`open_image`.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, bytes):
        return decode_image(image, "<bytes>")
    if isinstance(image, str | os.PathLike):
        return open_image(os.fspath(image))
    raise UserError(f"an image of type {type(image).__name__} is not taken: {_EXPECTED}{_remedy(image)}")


def _from_array(array: np.ndarray) -> Image.Image:
    shape, found = array.shape, f"the image is an array of {array.dtype} {array.shape}"
    if array.dtype != np.uint8:
        raise UserError(
            f"{found}: expected uint8, 0 to 255. Of numbers from 0 to 1, (array * 255).round().astype('uint8') makes "
            "that; what a model's transform has normalised is no picture any more, so give the one before it"
        )
    if 0 not in shape and (array.ndim == 2 or array.ndim == 3 and shape[2] in (3, 4)):
        return Image.fromarray(np.ascontiguousarray(array))
    remedy = ""
    if array.ndim == 3 and shape[0] in (1, 3, 4):
        remedy = ". Channels come last: array.transpose(1, 2, 0)"
    if array.ndim == 3 and shape[2] == 1:
        remedy = ". Leave the single channel out: array[:, :, 0]"
    if array.ndim == 4:
        remedy = ". For several images give a list: list(array)"
    raise UserError(f"{found}: expected (height, width, 3), or (height, width) where it is grey{remedy}")


def _remedy(image: object) -> str:
    """Return the last words of an error about a value of another type, with what makes a picture of it."""
    if type(image).__module__.partition(".")[0] == "torch":
        return ". Of a tensor (3, height, width) from 0 to 1: (tensor * 255).byte().permute(1, 2, 0).cpu().numpy()"
    if isinstance(image, list | tuple):
        return ". One image is wanted here; vlm.ask(images, questions) takes a list"
    return ""
