"""How often a model's answers about held-out scenes are well formed and right, against the best constant answer."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track

from cobra.models.vlms import CobraVLM
from cobra.preprocessing.datasets import extract_reasoning_trace
from cobra.util.images import read_rgb

# Answers of the demonstration end far below this.
MAX_NEW_TOKENS = 128


@dataclass
class KindScore:
    """Right answers to the questions of one kind."""

    n: int = 0
    """Questions."""
    correct: int = 0
    """Conclusions that equal the exact answer."""
    majority: int = 0
    """Right answers of somebody who always gives the commonest answer of the kind; see :func:`score_answers`."""

    @property
    def accuracy(self) -> float:
        """Share of right conclusions."""
        return self.correct / self.n

    @property
    def p_value(self) -> float:
        """Probability of at least as many right answers if each were right as often as the commonest answer is."""
        return binomial_tail(self.correct, self.n, self.majority / self.n)


@dataclass
class AnswerScore:
    """Structure and accuracy over all rows."""

    valid: int = 0
    """Answers with all four stages, closed and in order."""
    kinds: dict[str, KindScore] = field(default_factory=dict)
    """By kind of question, in the order of their first row."""

    @property
    def overall(self) -> KindScore:
        """The sums over the kinds: the constant answer may differ from kind to kind."""
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
            "overall": _numbers(self.overall),
            "kinds": {kind: _numbers(score) for kind, score in self.kinds.items()},
        }


def _numbers(score: KindScore) -> dict[str, float]:
    return {
        "n": score.n,
        "accuracy": score.accuracy,
        "majority_accuracy": score.majority / score.n,
        "p_value": score.p_value,
    }


def binomial_tail(successes: int, n: int, p: float) -> float:
    """Return the probability of at least `successes` in `n` independent trials of chance `p` (exact one-sided test)."""
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(successes, n + 1))


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
    for start in track(range(0, len(rows), batch_size), description="held-out answers    "):
        batch = rows[start : start + batch_size]
        images, prompts = [], []
        for row in batch:
            images.append(read_rgb(image_dir / row["image"]))
            builder = vlm.get_prompt_builder()
            builder.add_turn("human", row["conversations"][0]["value"])
            prompts.append(builder.get_prompt())
        answers += vlm.generate_batch(vlm.preprocess(images), prompts, max_new_tokens=MAX_NEW_TOKENS)
    return answers


def score_answers(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> AnswerScore:
    """Compare the answers' conclusions with those of the rows, character by character but for white space around.

    The commonest answer is that of the very rows, so no constant answer does better on them. Where a question names
    its options, the constant answer is "the first" or "the second" one.

    Args:
        rows: As :func:`cobra.demo.datasets.write_question_rows` writes them.
        answers: One a row.
    """
    score = AnswerScore()
    true_answers: dict[str, Counter[str]] = {}
    for row, answer in zip(rows, answers, strict=True):
        truth = extract_reasoning_trace(row["conversations"][1]["value"]).conclusion
        trace = extract_reasoning_trace(answer)
        score.valid += trace.is_valid
        kind = score.kinds.setdefault(row["kind"], KindScore())
        kind.n += 1
        kind.correct += trace.conclusion == truth
        constant = str(row["options"].index(truth)) if row["options"] else str(truth)
        true_answers.setdefault(row["kind"], Counter())[constant] += 1
    for name, counts in true_answers.items():
        score.kinds[name].majority = max(counts.values())
    return score
