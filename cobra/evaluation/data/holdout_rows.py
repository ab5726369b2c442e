"""Held-out rows of LLaVA-CoT-100k whose conclusions can be scored."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cobra.evaluation.data.captioned_image import CaptionedImage, check_file_name
from cobra.evaluation.data.image_sources import PictureFolder, Pictures, RowPictureSource
from cobra.preprocessing.datasets.rows import source_of
from cobra.preprocessing.forms.training_rows import check_rows, row_namer
from cobra.preprocessing.packed.files import is_packed
from cobra.preprocessing.packed.rows import packed_sha256
from cobra.reasoning.trace import extract_reasoning_trace
from cobra.util.conversation import without_placeholder
from cobra.util.errors import UserError
from cobra.util.files import sha256_file


@dataclass(frozen=True)
class ConclusionRow:
    """First question of a held-out row, and its right answer."""

    number: int
    """Unique number of the row in the file: its index from 0 in a JSON list, its line from 1 in JSON lines."""
    row_id: Any
    """Id as the row has it: text or number, not necessarily unique."""
    image: str
    """Path below the image folder."""
    question: str
    """Without `<image>`."""
    conclusion: str
    source: str
    """The data set that the row is from: the first folder of its image's path."""
    kind: str | None = None
    """Kind of its question, where the row names one under `kind`."""

    @property
    def captioned(self) -> CaptionedImage:
        """Image to ask about: the row's number is its id, the conclusion its one reference."""
        return CaptionedImage(self.number, self.image, (self.conclusion,), self.question)


@dataclass(frozen=True)
class Holdout:
    """Rows of a file that can be scored."""

    rows: list[ConclusionRow]
    without_conclusion: int
    """Rows left out because their first answer has no CONCLUSION, as multi-turn rows may."""
    without_image: int
    """Rows left out because they are of text only."""


def read_holdout(path: Path) -> Holdout:
    """Read held-out rows as `fine_tune/prepare_llava_cot.py` leaves them, or in any form that training takes.

    Raises:
        UserError: The file is missing, is not JSON (with the line) or not of that form (with the row), an image's path
            leads out of its folder, or no row can be scored.
    """
    if not (path.is_file() or is_packed(path)):
        raise UserError(
            f"The held-out rows do not exist: {path}. fine_tune/prepare_llava_cot.py writes them as "
            "DATASET_ROOT/download/llava-cot-100k/llava_cot_100k_holdout.json (its --holdout says how many); name that "
            "file with --llava_cot_annotations"
        )
    rows: list[ConclusionRow] = []
    without_conclusion = without_image = 0
    name = row_namer(path)
    for number, row, _ in check_rows(path):
        turns = row["conversations"]
        conclusion = extract_reasoning_trace(turns[1]["value"]).conclusion if len(turns) > 1 else None
        if "image" not in row:
            without_image += 1
        elif not conclusion:
            without_conclusion += 1
        else:
            check_file_name(row["image"], name(number, row))
            question = without_placeholder(turns[0]["value"])
            kind = row.get("kind") if isinstance(row.get("kind"), str) else None
            rows.append(ConclusionRow(number, row.get("id"), row["image"], question, conclusion, source_of(row), kind))
    if not rows:
        raise UserError(
            f"{path} has no row to score: {without_conclusion} have no CONCLUSION in their first answer, "
            f"{without_image} no image. Give rows with four-stage answers, such as llava_cot_100k_holdout.json."
        )
    return Holdout(rows, without_conclusion, without_image)


def holdout_sha256(path: Path) -> str:
    """Return the digest of a file or data set of held-out rows."""
    return packed_sha256(path)[0] if is_packed(path) else sha256_file(path)


def holdout_pictures(path: Path, image_dir: Path | None) -> Pictures:
    """Return the source of the images of held-out rows: inside the rows, or in a folder, by default the file's."""
    folder = PictureFolder(image_dir or path.parent)
    return RowPictureSource(path, folder) if is_packed(path) else folder
