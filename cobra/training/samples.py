"""Answers about a few held-out rows while a model learns: `samples.jsonl` with all of them, `samples.html` to look at.

Every line of `samples.jsonl` is one answer: `step`, `row` (its number in the held-out rows), `id`, `question`,
`reference` and `answer`.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Template

from cobra.reasoning.matching import match_conclusion
from cobra.reasoning.trace import extract_reasoning_trace
from cobra.training.jsonl_log import StepLines
from cobra.util.files import write_text
from cobra.util.html_pages import Thumbnail, page_templates, thumbnail
from cobra.util.printable import printable

SAMPLES = "samples.jsonl"
PAGE = "samples.html"

# Evaluations on the page, and characters of a text there.
_EVALUATIONS = 10
_CHARACTERS = 4000
_ID_CHARACTERS = 200


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

    def __init__(self, rows: Sequence[SampledRow], image_dir: Path) -> None:
        """Remember what is asked; the rows' image paths are relative to `image_dir`."""
        self._rows, self._image_dir = rows, image_dir

    def cut_back(self, run_dir: Path, last_step: int) -> None:
        """Take out of a run's `samples.jsonl` what was written after a step; 0 empties it."""
        if (run_dir / SAMPLES).exists():
            StepLines(run_dir / SAMPLES, "step", last_step)

    def write(self, run_dir: Path, step: int, answers: Sequence[str]) -> None:
        """Append the answers of a step, an answer for each row, and write the page anew.

        Lines of this step and of later ones, which a start before this one has written, are taken out.

        Raises:
            OSError: The disk is full, say; each file is as it was, or as it shall be.
        """
        lines = StepLines(run_dir / SAMPLES, "step", step - 1)
        asked = [
            {"step": step, "row": row.row, "id": row.row_id, "question": row.question, "reference": row.reference}
            for row in self._rows
        ]
        lines.append([values | {"answer": answer} for values, answer in zip(asked, answers, strict=True)])
        write_text(run_dir / PAGE, self._render(run_dir.name, lines))

    @cached_property
    def _pictures(self) -> list[Thumbnail | str | None]:
        return [None if row.image is None else thumbnail(self._image_dir / row.image) for row in self._rows]

    def _render(self, run_id: str, lines: StepLines) -> str:
        evaluations = deque[tuple[int, list[dict[str, Any]]]](maxlen=_EVALUATIONS)
        for step, group in groupby(lines.read(), key=lambda line: line["step"]):
            evaluations.appendleft((step, list(group)))
        # A later start may ask about other rows; those have no picture here any more.
        answers = {
            row.row: [
                (step, _answer(line["answer"]))
                for step, group in evaluations
                for line in group
                if line["row"] == row.row
            ]
            for row in self._rows
        }
        return _template().render(
            run_id=run_id,
            max_steps=_EVALUATIONS,
            evaluations=[
                (step, structure((line["answer"], line["reference"], line["question"]) for line in group))
                for step, group in evaluations
            ],
            rows=[
                {
                    "row_id": printable(str(row.row_id), _ID_CHARACTERS),
                    "image": row.image and printable(row.image, _ID_CHARACTERS),
                    "picture": picture,
                    "question": printable(row.question, _CHARACTERS),
                    "reference": _answer(row.reference),
                    "answers": answers[row.row],
                }
                for row, picture in zip(self._rows, self._pictures, strict=True)
            ],
        )


@cache
def _template() -> Template:
    return page_templates("cobra.training").get_template("samples.html.j2")


def _answer(text: str) -> tuple[list[tuple[str, str]], str, list[str]]:
    """Return an answer as the page shows it: (stages, text without stages, faults)."""
    trace = extract_reasoning_trace(text)
    stages = [(stage, printable(body, _CHARACTERS)) for stage, body in trace.texts]
    return stages, "" if stages else printable(text, _CHARACTERS), trace.faults
