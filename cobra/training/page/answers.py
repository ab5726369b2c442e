"""Answers of a run about its held-out rows, by validation, and the shares of right ones by source."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from cobra.preprocessing.datasets.rows import source_of
from cobra.reasoning.matching import match_conclusion
from cobra.reasoning.trace import given_conclusion
from cobra.training.page.history import Curve, GrowingLog

# Validations whose answers are kept at most, beside the newest, and answers of all of them together.
MOST_VALIDATIONS = 24
_MOST_ANSWERS = 600
# Words of a reference without stages up to which an answer is compared with it; a longer one is a description.
_SHORT = 8

ALL = ""
"""Key of the share over all sources."""


def is_right(answer: str, reference: str, question: str) -> bool | None:
    """Return True if an answer comes to its reference's conclusion; None where the reference has none to compare."""
    expected, origin = given_conclusion(reference)
    if not expected or (origin == "text" and len(expected.split()) > _SHORT):
        return None
    return match_conclusion(given_conclusion(answer)[0], expected, question) is not None


class Answer(NamedTuple):
    """An answer of one validation."""

    step: int
    text: str
    is_right: bool | None
    """None where that cannot be told."""


class AnsweredRow(NamedTuple):
    """A held-out row and its answers, the oldest first."""

    line: dict[str, Any]
    """The newest line of `samples.jsonl` about it."""
    answers: list[Answer]


class AnswerHistory:
    """Answers out of a run's `samples.jsonl`, read as it grows.

    Attributes:
        shares: Share of right answers by source, and by `ALL` of all together.
        counts: Questions of the newest validation that can be judged, by the same keys.
    """

    def __init__(self, path: Path) -> None:
        """Read nothing yet; `path` is the file."""
        self._log = GrowingLog(path)
        self._kept: list[list[dict[str, Any]]] = []
        self._newest: list[dict[str, Any]] = []
        self._every = 1
        self._number = 0
        self.shares = defaultdict[str, Curve](Curve)
        self.counts: dict[str, int] = {}

    def read_on(self) -> bool:
        """Read the validations that are new; return True if there are any."""
        before = self._number
        for step, lines in groupby(filter(_is_whole, self._log.new_lines()), key=lambda line: int(line["step"])):
            self._add(step, list(lines))
        return self._number > before

    def _add(self, step: int, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            line["is_right"] = is_right(line["answer"], line["reference"], line["question"])
        if self._number % self._every == 0:
            self._kept.append(lines)
        self._number += 1
        self._newest = lines
        while len(self._kept) > max(2, min(MOST_VALIDATIONS, _MOST_ANSWERS // len(lines))):
            self._kept, self._every = self._kept[::2], 2 * self._every
        judged = defaultdict[str, list[bool]](list)
        for line in lines:
            if line["is_right"] is not None:
                judged[ALL].append(line["is_right"])
                judged[source_of(line)].append(line["is_right"])
        self.counts = {source: len(answers) for source, answers in judged.items()}
        for source, answers in judged.items():
            self.shares[source].add(step, sum(answers) / len(answers))

    @property
    def validations(self) -> list[list[dict[str, Any]]]:
        """Lines of the validations that are kept and of the newest, the oldest first."""
        return self._kept if self._kept[-1:] in ([], [self._newest]) else [*self._kept, self._newest]

    @property
    def steps(self) -> list[int]:
        """Steps of these validations."""
        return [lines[0]["step"] for lines in self.validations]

    @property
    def asked(self) -> int:
        """Number of rows that the newest validation asked about."""
        return len(self._newest)

    def rows(self, most: int) -> list[AnsweredRow]:
        """Return the rows of the newest validation, `most` at most, with their answers of those that are kept."""
        answers = defaultdict[int, list[Answer]](list)
        for lines in self.validations:
            for line in lines:
                answers[line["row"]].append(Answer(line["step"], line["answer"], line["is_right"]))
        return [AnsweredRow(line, answers[line["row"]]) for line in self._newest[:most]]

    def right(self) -> Iterable[tuple[int, int]]:
        """Yield (right answers, judged ones) of each of these validations."""
        for lines in self.validations:
            verdicts = [line["is_right"] for line in lines if line["is_right"] is not None]
            yield sum(verdicts), len(verdicts)


def _is_whole(line: dict[str, Any]) -> bool:
    """Return True if a line has what the page shows; older runs have no `image`."""
    texts = (line.get(name) for name in ("question", "reference", "answer"))
    return all(type(line.get(name)) is int for name in ("step", "row")) and all(isinstance(text, str) for text in texts)
