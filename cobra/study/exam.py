"""Exam of a study: what all its models are asked, under the same limits, and how an answer is scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from cobra.evaluation.data.caption_set import read_caption_set
from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.coco import sample
from cobra.evaluation.data.holdout_rows import ConclusionRow, holdout_pictures, holdout_sha256, read_holdout
from cobra.evaluation.data.image_sources import Pictures, check_present
from cobra.evaluation.metrics.caption_scorer import CaptionScorer
from cobra.evaluation.metrics.cider import cider
from cobra.evaluation.metrics.conclusion_accuracy import score_conclusions
from cobra.evaluation.responses.protocol import DEFAULT_PROMPT, Answer, Protocol
from cobra.evaluation.responses.respond import Throughput, answer_variants
from cobra.evaluation.tasks.base import LIST_FILE, SAMPLE_SEED
from cobra.models.vlms import CobraVLM
from cobra.preprocessing.datasets.answer_forms import UNTAGGED
from cobra.reasoning.trace import STAGE_BREAK
from cobra.util.distributed import World
from cobra.util.errors import UserError, check_values
from cobra.util.numbers import counted

CONCLUSIONS, CAPTIONS = "right conclusions", "CIDEr of captions"
"""Measures of an exam; logs of lmms-eval bring others."""


@dataclass(frozen=True)
class Score:
    """Score of one model."""

    values: dict[str, list[float]]
    """Score of every question by measure: 1 or 0 for a conclusion, CIDEr for a caption."""
    tokens: float | None = None
    """Mean tokens of an answer."""
    seconds: float | None = None
    """Mean seconds of an answer, in batches; None where some answers were there before."""
    valid: float | None = None
    """Share of answers with all four stages in order."""
    sha256: str = ""
    """SHA-256 of the checkpoint."""
    lower_is_better: Sequence[str] = ()
    """Measures of which less is better."""
    left_out: Sequence[str] = ()
    """Measures that cannot be compared question by question."""


@dataclass(frozen=True)
class _Part:
    """Questions of one measure."""

    images: Sequence[CaptionedImage]
    pictures: Pictures
    protocol: Protocol


@dataclass(frozen=True)
class Exam:
    """Questions that every model answers; at least one of the two parts is there."""

    rows: Sequence[ConclusionRow]
    """Questions with a right conclusion each; empty where captions alone are scored."""
    questions: _Part | None
    captions: _Part | None
    scorer: CaptionScorer | None
    """Scorer of the captions."""
    sha256: str
    """Digests of the files."""

    @property
    def kinds(self) -> list[str]:
        """Kind of each question: the row's `kind`, else its source."""
        return [row.kind or row.source for row in self.rows]

    def take(self, vlm: CobraVLM, name: str, arm: str, folder: Path, world: World) -> Score:
        """Let a model answer everything; what the folder holds of its answers is not asked again.

        Args:
            vlm: In evaluation mode.
            name: Name of the model, by which its answers are kept.
            arm: Form of the answers that it was trained on, by which its conclusions are found.
            folder: Folder of answers.
            world: This process.
        """
        values: dict[str, list[float]] = {}
        answers: list[Answer] = []
        throughput: Throughput | None = None
        if self.captions is not None and self.scorer is not None:
            answers, throughput = _ask(vlm, name, self.captions, folder / "captions", world)
            values[CAPTIONS] = self.scorer.score([answer.scored for answer in answers])["cider"].per_image.tolist()
        if self.questions is not None:
            answers, throughput = _ask(vlm, name, self.questions, folder / "questions", world)
            pairs = zip(answers, self.rows, strict=True)
            conclusions = [conclusion_of(answer.raw, arm, row.conclusion) for answer, row in pairs]
            verdicts = score_conclusions(self.rows, conclusions)
            values = {CONCLUSIONS: verdicts.correct.astype(float).tolist()} | values
        assert throughput is not None
        return Score(
            values,
            tokens=float(np.mean([len(vlm.tokenize(answer.raw)) for answer in answers])),
            seconds=throughput.seconds / len(answers) if throughput.captions == len(answers) else None,
            valid=float(np.mean([answer.valid_structure for answer in answers])),
            sha256=str(vlm.checkpoint_sha256),
        )


def read_exam(
    folder: Path,
    max_new_tokens: int,
    batch_size: int,
    questions: tuple[Path, Path | None, int | None] | None = None,
    captions: tuple[str, Path | None, int | None] | None = None,
) -> Exam:
    """Read what is asked, and look for the images.

    Args:
        folder: Folder of the list of images with problems.
        max_new_tokens: Most tokens of an answer.
        batch_size: Questions answered in one batch.
        questions: File of rows with a right conclusion each, folder of their images (by default the file's), and size
            of the sample.
        captions: Source of captions, folder of its images, and size of the sample.

    Raises:
        UserError: A file or an image is missing, or there are fewer than two questions or captions: no spread, and so
            effect, can be told from one.
    """
    rows: Sequence[ConclusionRow] = ()
    asked = described = scorer = None
    digests = []
    if questions is not None:
        path, folder_of_images, count = questions
        rows, digest = sample(read_holdout(path).rows, count, SAMPLE_SEED), holdout_sha256(path)
        _check_count(len(rows), count, "question", path)
        protocol = Protocol("", max_new_tokens, batch_size, questions_sha256=digest)
        asked = _Part([row.captioned for row in rows], holdout_pictures(path, folder_of_images), protocol)
        digests.append(digest)
    if captions is not None:
        source, image_dir, count = captions
        whole = read_caption_set(source, image_dir, list_file=folder / LIST_FILE)
        if whole.pictures is None:
            raise UserError(f"--image_dir is missing: the folder of the images that {whole.source} names")
        images = sample(whole.images, count, SAMPLE_SEED)
        _check_count(len(images), count, "image", whole.source)
        described = _Part(images, whole.pictures, Protocol(DEFAULT_PROMPT, max_new_tokens, batch_size))
        scorer = CaptionScorer(images, [cider(whole.images)])
        digests.append(whole.sha256)
    for part in filter(None, (asked, described)):
        check_present(part.images, part.pictures, folder / LIST_FILE)
    return Exam(rows, asked, described, scorer, "+".join(digests))


def _check_count(count: int, most: int | None, noun: str, source: object) -> None:
    if most is not None:
        check_values({"max_images": (most, most >= 2, "at least 2")})
    if count < 2:
        raise UserError(
            f"{source} has {counted(count, noun)} to score, and at least 2 are needed: an effect is measured against "
            f"the spread of {noun}s. Give more of them"
        )


def conclusion_of(answer: str, arm: str, right: str) -> str:
    """Return the part of an answer that holds its conclusion: all of it but of `untagged`.

    There it is as many last paragraphs as the right conclusion has.
    """
    if arm != UNTAGGED:
        return answer
    return STAGE_BREAK.join(answer.strip().split(STAGE_BREAK)[-len(right.split(STAGE_BREAK)) :])


def _ask(vlm: CobraVLM, name: str, part: _Part, folder: Path, world: World) -> tuple[list[Answer], Throughput]:
    answered = answer_variants(
        vlm, name, part.images, part.pictures, part.protocol, folder, False, world, Console(), scratchpads=[False]
    )
    return answered.answers[name], answered.throughput[name]
