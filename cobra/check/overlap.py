"""Overlap of the rows with what a model will be evaluated on."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cobra.check.pictures import look_at
from cobra.check.texts import Texts, row_key
from cobra.evaluation.data.caption_set import read_caption_set
from cobra.evaluation.data.coco import DEFAULT_ANNOTATIONS
from cobra.evaluation.data.contamination import TrainingIds, find_overlap
from cobra.preprocessing.datasets.arrow_rows import read_rows
from cobra.preprocessing.llava_cot.report.coco_ids import coco_image
from cobra.preprocessing.packed.rows import RowImages


@dataclass(frozen=True)
class EvaluationOverlap:
    """Rows and images that training and an evaluation share."""

    evaluation: Path
    """File of the evaluation."""
    images: int
    """Images of the evaluation."""
    seen_images: int
    """Those of them among the rows: COCO's by their number, others by their bytes."""
    seen_rows: int = 0
    """Held-out rows that say what a row says about the same image."""


def compare_coco(given: Path | None, images: Iterable[str]) -> EvaluationOverlap | None:
    """Compare the photos of the rows with those of COCO's captions; None where there are none to compare with.

    Args:
        given: The captions; None takes those that are fetched, if they are.
        images: Image paths of the rows.

    Raises:
        UserError: The captions cannot be read.
    """
    file = given or DEFAULT_ANNOTATIONS
    if given is None and not file.is_file():
        return None
    numbers = frozenset(photo[1] for image in images if (photo := coco_image(image)) is not None)
    overlap = find_overlap(read_caption_set(file).images, TrainingIds(numbers, ""))
    return EvaluationOverlap(file, overlap.images, len(overlap.image_ids))


def compare_holdout(file: Path, folder: Path, texts: Texts, contents: Iterable[str]) -> EvaluationOverlap:
    """Compare held-out rows with the rows, by the bytes of their images and by what they say.

    Args:
        file: The held-out rows.
        folder: The image folder of both.
        texts: The rows' texts.
        contents: Digests of the rows' images.

    Raises:
        UserError: The held-out rows cannot be read.
    """
    rows = read_rows(file)
    pictures = look_at(rows.images(), RowImages(file, folder), 1)
    seen = set(contents)
    return EvaluationOverlap(
        file,
        images=pictures.files,
        seen_images=sum(digest in seen for digest in pictures.contents.values()),
        seen_rows=sum(row_key(row, pictures.contents) in texts.keys for row in rows),
    )
