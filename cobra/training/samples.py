"""Answers about a few held-out rows while a model learns, kept in `samples.jsonl`; the run's page shows them.

Every line of it is one answer: `step`, `row` (its number in the held-out rows), `id`, `image`, `question`, `reference`
and `answer`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cobra.reasoning.matching import match_conclusion
from cobra.reasoning.trace import extract_reasoning_trace
from cobra.training.jsonl_log import StepLines

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class SampledRow:
    """A held-out row that is asked about at every evaluation: its first question."""

    row: int
    """Its number among the held-out rows."""
    row_id: Any
    image: str | None
    """Path below the image folder; None for a row of text only."""
    question: str
    """Without `<image>`."""
    reference: str


class Structure(NamedTuple):
    """Counts of answers by their form and their conclusions."""

    answers: int
    valid: int
    """All four stages are there, closed, in order, and nothing else."""
    compared: int
    """Answers that have a CONCLUSION, as their reference has."""
    matched: int
    """Those whose CONCLUSION says the same; see :func:`cobra.reasoning.matching.match_conclusion`."""


def structure(answered: Iterable[tuple[str, str, str]]) -> Structure:
    """Count answers by form and conclusion, each given with its reference and its question."""
    answers = valid = compared = matched = 0
    for answer, reference, question in answered:
        trace, expected = extract_reasoning_trace(answer), extract_reasoning_trace(reference).conclusion
        answers += 1
        valid += trace.is_valid
        compared += trace.conclusion is not None and expected is not None
        matched += match_conclusion(trace.conclusion, expected, question) is not None
    return Structure(answers, valid, compared, matched)


class SampleLog:
    """Writes the answers of every evaluation to a run's directory."""

    def __init__(self, rows: Sequence[SampledRow]) -> None:
        """Remember what is asked."""
        self._rows = rows

    def cut_back(self, run_dir: Path, last_step: int) -> None:
        """Take out of a run's `samples.jsonl` what was written after a step; 0 empties it."""
        if (run_dir / SAMPLES).exists():
            StepLines(run_dir / SAMPLES, "step", last_step)

    def write(self, run_dir: Path, step: int, answers: Sequence[str]) -> None:
        """Append the answers of a step, an answer for each row.

        Lines of this step and of later ones, which a start before this one has written, are taken out.

        Raises:
            OSError: The disk is full, say; the file is as it was.
        """
        asked = [
            {"step": step, "row": row.row, "id": row.row_id, "image": row.image}
            | {"question": row.question, "reference": row.reference}
            for row in self._rows
        ]
        lines = StepLines(run_dir / SAMPLES, "step", step - 1)
        lines.append([values | {"answer": answer} for values, answer in zip(asked, answers, strict=True)])
