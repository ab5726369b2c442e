"""Contamination check: finds evaluated images that the model may have been trained on, by COCO's photo numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from cobra.conf import DatasetConfig
from cobra.evaluation.data.captioned_image import CaptionedImage, ImageId, count_images, photo_number, shortened
from cobra.preprocessing.forms.training_rows import check_rows
from cobra.preprocessing.llava_cot.report.coco_ids import CocoIds
from cobra.util.errors import UserError
from cobra.util.files import read_json
from cobra.util.numbers import share

FILE_NAME = "coco_ids.json"
"""File that `fine_tune/prepare_llava_cot.py` writes beside the images: `{"train2017": [9, ...], "val2017": [...]}`."""


@dataclass(frozen=True)
class TrainingIds:
    """COCO's numbers of the images in training rows."""

    numbers: frozenset[int]
    source: str
    """The file that they were found in."""


@dataclass(frozen=True)
class Overlap:
    """The images of an evaluation that training has seen."""

    image_ids: tuple[ImageId, ...]
    """In the order of the evaluation."""
    images: int
    """Number of images in the evaluation; all were compared."""
    source: str | None
    """The file with the training images; None where there is none, so that nothing is known."""
    excluded: bool = False
    """True if they were left out."""

    @property
    def sentence(self) -> str:
        """One sentence for a reader."""
        if self.source is None:
            return (
                f"Overlap with the training images: not known, as there is no {FILE_NAME}; --exclude_ids takes one, or "
                "the training rows themselves."
            )
        fate = ", which were left out" if self.excluded else " (--exclude_ids leaves them out)"
        seen = f" ({share(len(self.image_ids), self.images)})" if self.images else ""
        return (
            f"Overlap with the training images in {self.source}: {len(self.image_ids):,} of {count_images(self.images)}"
            f"{seen}{fate if self.image_ids else ''}. What a base model has seen before is not among them."
        )

    def to_json(self) -> dict[str, Any]:
        """Return it for `metrics.json`; `n` and `image_ids` are None where nothing is known."""
        known = self.source is not None
        return {
            "source": self.source,
            "n": len(self.image_ids) if known else None,
            "image_ids": list(self.image_ids) if known else None,
            "excluded": self.excluded,
        }


def find_training_ids(dataset_roots: Iterable[Path] = (Path("data"),)) -> Path | None:
    """Return the list of training images beside a registered dataset's images, under the first root that has one."""
    folders = {choice().finetune_stage_components[1]: None for choice in DatasetConfig.get_known_choices().values()}
    files = (root / folder / FILE_NAME for root in dataset_roots for folder in folders)
    return next((file for file in files if file.is_file()), None)


def read_training_ids(path: Path) -> TrainingIds:
    """Read COCO's numbers of training images.

    The file is `coco_ids.json`, a JSON list of numbers or file names, or training rows in LLaVA's format (a JSON list,
    or JSON lines), whose image paths are looked at.

    Raises:
        UserError: The file is missing or is none of these.
    """
    if path.suffix == ".jsonl" and path.is_file():
        return TrainingIds(_of_rows(path), str(path))
    remedy = f"fine_tune/prepare_llava_cot.py writes {FILE_NAME}."
    content = read_json(path, "the file of training images", remedy, lines=True)
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return TrainingIds(_of_rows(path), str(path))
    listed = content if isinstance(content, list) else None
    if isinstance(content, dict) and all(isinstance(ids, list) for ids in content.values()):
        listed = list(chain.from_iterable(content.values()))
    if listed is None:
        raise UserError(
            f"{path} holds {shortened(content)}; expected is {FILE_NAME} as fine_tune/prepare_llava_cot.py writes it "
            "(lists of ids by split), a list of ids, or training rows in LLaVA's format"
        )
    numbers = [photo_number(entry) if type(entry) in (int, str) else None for entry in listed]
    if None in numbers:
        raise UserError(f"{path} has {shortened(listed[numbers.index(None)])} among its ids: COCO's are numbers")
    return TrainingIds(frozenset(number for number in numbers if number is not None), str(path))


def _of_rows(path: Path) -> frozenset[int]:
    ids = CocoIds()
    for checked in check_rows(path):
        if (image := checked.row.get("image")) is not None:
            ids.add(image)
    return frozenset(chain.from_iterable(ids.ids().values()))


def find_overlap(images: Sequence[CaptionedImage], training: TrainingIds | None) -> Overlap:
    """Compare the images of an evaluation with those of training; None is where nothing is known of them.

    An image is a photo of COCO by its file name. Ids alone do not tell: other data have numbers of their own.
    """
    if training is None:
        return Overlap((), len(images), None)
    found = [image.image_id for image in images if photo_number(image.file_name) in training.numbers]
    return Overlap(tuple(found), len(images), training.source)


def leave_out(images: Sequence[CaptionedImage], overlap: Overlap) -> tuple[list[CaptionedImage], Overlap]:
    """Return the images that are not in the overlap, and the overlap as excluded.

    Raises:
        UserError: No image is left.
    """
    seen = set(overlap.image_ids)
    kept = [image for image in images if image.image_id not in seen]
    if not kept:
        raise UserError(
            f"Nothing is left to evaluate: of {count_images(len(images))} all are among the training images in "
            f"{overlap.source}. Give other images, or leave --exclude_ids out."
        )
    return kept, replace(overlap, excluded=True)
