"""Sources of the pictures of captioned images: a folder, or the rows of a data set."""

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image

from cobra.evaluation.data.captioned_image import (
    FETCH_COMMAND,
    CaptionedImage,
    count_images,
    photo_number,
    refuse_images,
)
from cobra.preprocessing.packed.rows import RowImages
from cobra.util.errors import UserError
from cobra.util.images import BadImageError, read_rgb
from cobra.util.printable import printable

PictureFile = Path | io.BytesIO
"""File that Pillow opens."""

# The folders of COCO's downloads that hold the photos with captions.
_FOLDERS_2017 = ("", "val2017/", "train2017/")
_SPLITS_2014 = ("val2014", "train2014")


class Pictures(ABC):
    """Source of the pictures of a caption set."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the place in messages, e.g. `the folder val2017`."""

    @abstractmethod
    def file(self, image: CaptionedImage) -> PictureFile | None:
        """Return an image's file as it is stored, each time a new stream; None where there is none."""

    def has(self, image: CaptionedImage) -> bool:
        """Return True if there is a file."""
        return self.file(image) is not None

    @abstractmethod
    def others(self) -> list[str]:
        """Return names of a few files that are there, for a message; empty where there is none."""

    def load(self, image: CaptionedImage) -> Image.Image:
        """Decode an image to RGB.

        Raises:
            UserError: It is not there, or cannot be decoded.
        """
        file = self.file(image)
        name = str(file) if isinstance(file, Path) else f"{printable(image.file_name)} in {self.name}"
        if file is None:
            raise UserError(f"{name} does not exist")
        try:
            return read_rgb(file)
        except FileNotFoundError as error:
            raise UserError(f"{name} does not exist") from error
        except BadImageError as error:
            raise UserError(f"{name} is not a readable image ({error})") from error


class PictureFolder(Pictures):
    """A folder that the images' file names lead from.

    A photo of COCO is also found under its other names, with the folders of the download: of
    `val2014/COCO_val2014_000000000042.jpg` these are, for one, `000000000042.jpg` and `train2017/000000000042.jpg`.
    """

    def __init__(self, folder: Path) -> None:
        """Remember the folder.

        Raises:
            UserError: There is no such folder.
        """
        if not folder.is_dir():
            problem = "is a file" if folder.exists() else "does not exist"
            raise UserError(f"The image folder {problem}: {folder}. COCO's own comes with: {FETCH_COMMAND}")
        self._folder = folder

    @property
    def name(self) -> str:
        """The folder."""
        return f"the folder {self._folder}"

    def file(self, image: CaptionedImage) -> Path | None:
        """Return the path of an image; None where there is none under any of its names."""
        paths = (self._folder / name for name in _names(image.file_name))
        # False, too, of a name that no file can have.
        return next((path for path in paths if os.path.isfile(path)), None)

    def others(self) -> list[str]:
        """Return a few files of the folder."""
        return sorted(islice((path.name for path in self._folder.iterdir() if path.is_file()), 3))


class RowPictureSource(Pictures):
    """Pictures inside packed rows; those that are files are in a folder."""

    def __init__(self, annotation_file: Path, folder: PictureFolder) -> None:
        """Remember where rows and files are."""
        self._folder, self._images = folder, RowImages(annotation_file, Path())

    @property
    def name(self) -> str:
        """The packed rows."""
        return str(self._images.annotation_file)

    def file(self, image: CaptionedImage) -> PictureFile | None:
        """Return the bytes of an image, or its path; None where there is none, or none that can be read."""
        if not self._images.is_inside(image.file_name):
            return self._folder.file(image)
        try:
            return self._images.open(image.file_name)
        except BadImageError:
            return None

    def has(self, image: CaptionedImage) -> bool:
        """Return True if there is a file, without reading it."""
        return self._images.is_inside(image.file_name) or self._folder.has(image)

    def others(self) -> list[str]:
        """Return a few files of the folder."""
        return self._folder.others()


def _names(file_name: str) -> Iterator[str]:
    """Yield where a file may be, relative to the image folder."""
    yield file_name
    number = photo_number(file_name)
    if number is not None:
        yield from (f"{folder}{number:012d}.jpg" for folder in _FOLDERS_2017)
        for split in _SPLITS_2014:
            yield from (f"{folder}COCO_{split}_{number:012d}.jpg" for folder in ("", f"{split}/"))


def check_present(images: Sequence[CaptionedImage], pictures: Pictures, list_file: Path | None = None) -> None:
    """Look for every image's file, without reading it.

    Raises:
        UserError: Files are missing: their number and the first few, and all in `list_file` where there are more; or
            every one, with what is there instead.
    """
    missing = [image.file_name for image in images if not pictures.has(image)]
    if len(missing) == len(images) > 1:
        instead = ", ".join(printable(name, 80) for name in pictures.others())
        raise UserError(
            f"None of the {count_images(len(images))} of the annotation file is in {pictures.name}: they do not belong "
            f"together. {printable(missing[0], 80)} was looked for, and {instead or 'no file'} is there. Give the "
            "folder of the images that the annotation file names (--image_dir)."
        )
    remedy = "Fetch them, or give the folder of the images that the annotation file names (--image_dir)."
    refuse_images(missing, f"{pictures.name} lacks", remedy, list_file)
