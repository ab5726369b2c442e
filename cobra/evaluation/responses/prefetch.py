"""Prefetch of images: decodes and transforms them in threads while the model works."""

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_sources import Pictures
from cobra.models.backbones.vision import PixelValues
from cobra.models.backbones.vision.transforms import ImageTransform
from cobra.util.errors import UserError
from cobra.util.files import sha256_file
from cobra.util.images import file_status
from cobra.util.parallel import available_cores

# Pillow decodes outside Python's lock; more threads than this would only take cores from the model.
_MOST_THREADS = 4


@dataclass(frozen=True)
class LoadedImage:
    """An image that was read, or the reason why it cannot be."""

    image: CaptionedImage
    sha256: str
    """Digest of its file; see :func:`hash_image`."""
    pixels: PixelValues | None
    """Output of the model's transform for one image; None where it cannot be read."""
    problem: str | None = None


def hash_image(image: CaptionedImage, pictures: Pictures) -> str:
    """Return the SHA-256 of an image's file as it is stored; empty where there is none, or none that is read."""
    file = pictures.file(image)
    try:
        if isinstance(file, Path):
            file_status(file)
            return sha256_file(file)
    except OSError:
        return ""
    return "" if file is None else hashlib.sha256(file.getvalue()).hexdigest()


def prefetch_images(
    images: Iterable[CaptionedImage], pictures: Pictures, transform: ImageTransform, ahead: int
) -> Generator[LoadedImage, None, None]:
    """Decode and transform images by threads, in order; an image that cannot be read says so in its place.

    Up to `ahead` images are ready before they are asked for, 3.5 MB each with two towers of 384 pixels.
    """
    pool = ThreadPoolExecutor(min(_MOST_THREADS, available_cores()), "images")
    waiting: deque[Future[LoadedImage]] = deque()
    # Each thread silences Pillow's warnings for itself, and they may take up each other's filters: put back here.
    with warnings.catch_warnings():
        try:
            for image in images:
                waiting.append(pool.submit(_load, image, pictures, transform))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _load(image: CaptionedImage, pictures: Pictures, transform: Callable) -> LoadedImage:
    sha256 = hash_image(image, pictures)
    try:
        return LoadedImage(image, sha256, transform(pictures.load(image)))
    except UserError as error:
        return LoadedImage(image, sha256, None, str(error))
