"""Caption sets of all forms: which one a file, a folder or a data set has is told by its content."""

from dataclasses import dataclass
from pathlib import Path

from cobra.evaluation.coco import FETCH_COMMAND, CaptionedImage, parse_captions
from cobra.evaluation.pictures import PictureFolder, Pictures
from cobra.util.files import read_json, sha256_file


@dataclass(frozen=True)
class CaptionSet:
    """Images with their captions, and where the pictures are."""

    images: list[CaptionedImage]
    pictures: Pictures | None
    """None where no folder was given: enough to score captions that are there."""
    source: str
    """The file, folder or data set, as it was given."""
    form: str
    """What it was found to be, e.g. `COCO captions`."""
    sha256: str
    """Of the file; of a data set, of the ids and captions that were read."""


def read_caption_set(
    source: Path | str, image_dir: Path | None = None, split: str | None = None, image_ids: Path | str | None = None
) -> CaptionSet:
    """Read images with captions in any of the known forms.

    Args:
        source: The annotation file.
        image_dir: Folder of the images that it names.
        split: Of Karpathy's file or a data set on the hub; None takes the one for testing.
        image_ids: A file of the ids to keep.

    Raises:
        UserError: It has none of the forms, or is not as its form must be.
    """
    path = Path(source)
    content = read_json(path, "the annotation file", f"COCO's own comes with: {FETCH_COMMAND}")
    images = parse_captions(content, path)
    pictures = None if image_dir is None else PictureFolder(image_dir)
    return CaptionSet(images, pictures, str(source), "COCO captions", sha256_file(path))
