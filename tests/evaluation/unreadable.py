"""Images of a set that cannot be decoded."""

from collections.abc import Sequence

from cobra.evaluation.data.captioned_image import CaptionedImage, ImageId
from cobra.evaluation.data.image_sources import Pictures
from cobra.util.errors import UserError


def unreadable_images(images: Sequence[CaptionedImage], pictures: Pictures) -> dict[ImageId, str]:
    """Return, by id, the error of every image that cannot be decoded."""
    errors = {}
    for image in images:
        try:
            pictures.load(image)
        except UserError as error:
            errors[image.image_id] = str(error)
    return errors
