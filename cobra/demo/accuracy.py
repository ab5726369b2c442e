"""Structure and accuracy of a model's answers about held-out scenes, beside those of the best constant answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cobra.evaluation.metrics.conclusion_accuracy import KindScore, score_kinds
from cobra.models.vlms import CobraVLM, as_turn
from cobra.preprocessing.progress import track_items
from cobra.reasoning.matching import match_conclusion
from cobra.reasoning.trace import extract_reasoning_trace, given_conclusion
from cobra.util.images import read_rgb

# Answers of the demonstration end far below this.
MAX_NEW_TOKENS = 128


@dataclass
class AnswerScore:
    """Structure and accuracy over all rows."""

    valid: int = 0
    """Answers with all four stages, closed and in order."""
    kinds: dict[str, KindScore] = field(default_factory=dict)
    """Scores by kind of question, in the order of their first row."""

    @property
    def overall(self) -> KindScore:
        """Sums over the kinds; the constant answer may differ from kind to kind."""
        scores = self.kinds.values()
        return KindScore(
            n=sum(score.n for score in scores),
            correct=sum(score.correct for score in scores),
            majority=sum(score.majority for score in scores),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a JSON file; shares are fractions of 1."""
        return {
            "n": self.overall.n,
            "valid_structure": self.valid / self.overall.n,
            "overall": self.overall.to_dict(),
            "kinds": {kind: score.to_dict() for kind, score in self.kinds.items()},
        }


def answer_rows(vlm: CobraVLM, rows: Sequence[dict[str, Any]], image_dir: Path, batch_size: int = 32) -> list[str]:
    """Let a model answer the first question of every row, greedily.

    Args:
        vlm: The model, in evaluation mode.
        rows: LLaVA rows with images.
        image_dir: Folder that their image paths are relative to.
        batch_size: Rows answered at once.

    Returns:
        The answers as generated, tags included.
    """
    answers: list[str] = []
    for start in track_items(range(0, len(rows), batch_size), "Answering held-out questions"):
        batch = rows[start : start + batch_size]
        images, prompts = [], []
        for row in batch:
            images.append(read_rgb(image_dir / row["image"]))
            prompts.append(as_turn(vlm, row["conversations"][0]["value"]))
        answers += vlm.generate_batch(vlm.preprocess(images), prompts, max_new_tokens=MAX_NEW_TOKENS)
    return answers


def score_answers(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> AnswerScore:
    """Compare the answers' conclusions with those of the rows, by :func:`match_conclusion`; untagged text is one whole.

    The commonest answer is that of the very rows, so no constant answer does better on them. Where a question names
    its options, the constant answer is "the first" or "the second" one.

    Args:
        rows: As :func:`cobra.demo.datasets.write_question_rows` writes them.
        answers: One a row.
    """
    judged = []
    valid = 0
    for row, answer in zip(rows, answers, strict=True):
        question, target = (turn["value"] for turn in row["conversations"][:2])
        truth = extract_reasoning_trace(target).conclusion or ""
        valid += extract_reasoning_trace(answer).is_valid
        constant = row["options"].index(truth) if row["options"] else truth
        judged.append(
            (row["kind"], match_conclusion(given_conclusion(answer)[0], truth, question) is not None, constant)
        )
    return AnswerScore(valid, score_kinds(judged))
