"""Pictures in the rows of a data set."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute

from cobra.evaluation.data.captioned_image import CaptionedImage, ImageId
from cobra.evaluation.data.image_sources import Pictures
from cobra.util.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

_BINARY = ("binary", "large_binary")


class RowPictures(Pictures):
    """The images in the rows of a data set; each is read from the disk when it is asked for."""

    def __init__(self, dataset: "Dataset", column: str, rows: dict[ImageId, int], name: str) -> None:
        """Remember where the images are.

        Args:
            dataset: The rows.
            column: As :func:`image_column` finds it; its images stay encoded.
            rows: The row of each image.
            name: Name of the data set in messages.

        Raises:
            UserError: Rows have lists of several images.
        """
        import datasets

        self._rows, self._column, self._name = rows, column, name
        self._dataset = dataset.select_columns([column])
        feature = dataset.features[column]
        encoded = datasets.Image(decode=False)
        if isinstance(feature, datasets.Image):
            self._dataset = self._dataset.cast_column(column, encoded)
        elif (inner := _inner(feature)) is not None:
            self._check_lists()
            if isinstance(inner, datasets.Image):
                self._dataset = self._dataset.cast_column(column, type(feature)(encoded))

    def _check_lists(self) -> None:
        lengths = pyarrow.compute.list_value_length(self._dataset.data.column(self._column))
        longest = pyarrow.compute.max(lengths).as_py() or 0
        if longest > 1:
            raise UserError(
                f"the column {self._column} of {self._name} has {longest} images in a row, and one was expected: "
                "captions here are of one image each. Make a row of each image, or give a column of single images."
            )

    @property
    def name(self) -> str:
        """The data set."""
        return self._name

    def has(self, image: CaptionedImage) -> bool:
        """Return True if the image has a row, without reading it."""
        return image.image_id in self._rows

    def file(self, image: CaptionedImage) -> Path | io.BytesIO | None:
        """Return the encoded image of a row."""
        value = self._dataset[self._rows[image.image_id]][self._column] if self.has(image) else None
        if isinstance(value, list):
            value = value[0] if value else None
        if value is None:
            return None
        encoded = value if isinstance(value, bytes) else value["bytes"]
        if encoded is not None:
            return io.BytesIO(encoded)
        path = Path(value["path"] or "")
        return path if path.is_file() else None

    def others(self) -> list[str]:
        """Return a few ids."""
        return [str(image_id) for image_id in list(self._rows)[:3]]


def image_column(dataset: "Dataset") -> str | None:
    """Return the column of images: of that type, of encoded bytes with a path or without, or of lists of such.

    Of several it is the one called `image`, else `images`, else the first.
    """
    found = [name for name, feature in dataset.features.items() if _is_image(feature) or _is_image(_inner(feature))]
    return next((name for name in ("image", "images", *found) if name in found), None)


def _inner(feature: Any) -> Any:
    """Return what a column of lists holds; None for other columns."""
    import datasets

    return feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else None


def _is_image(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Value):
        return feature.dtype in _BINARY
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
