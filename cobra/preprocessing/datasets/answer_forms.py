"""Forms of the answers that rows are trained on: the arms of a study, all with the same rows in the same order.

`full` is the answer as it stands. `conclusion` keeps its CONCLUSION alone, without the tags; `untagged` the texts of
all stages without the tags; `without:CAPTION` (or another stage) all but that one; `shuffled` gives the answer its own
CONCLUSION behind the stages of another row of the same source and kind, so that the trace has the right form and says
nothing of the question. An answer without stages is the same in all of them, and so are the questions.

Where rows are cut, a row of `shuffled` loses its CONCLUSION where it loses it with its own stages and, as far as there
are partners of a fitting length, nowhere else: otherwise the arm would differ by more than what the stages say.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobra.preprocessing.datasets.arrow_rows import Rows
from cobra.preprocessing.datasets.row_cache import load_or_build
from cobra.preprocessing.datasets.row_keys import Row
from cobra.preprocessing.datasets.rows import source_of
from cobra.preprocessing.progress import track_items
from cobra.reasoning.matching import conclusion_key
from cobra.reasoning.trace import STAGE_BREAK, STAGES, ReasoningTrace, extract_reasoning_trace, format_reasoning_trace
from cobra.util.conversation import without_placeholder
from cobra.util.errors import UserError, check_known
from cobra.util.files import atomic_path

FULL, CONCLUSION, UNTAGGED, SHUFFLED = "full", "conclusion", "untagged", "shuffled"
WITHOUT = "without:"
ANSWER_FORMS = (FULL, CONCLUSION, UNTAGGED, SHUFFLED, *(f"{WITHOUT}{stage.upper()}" for stage in STAGES[:-1]))
"""Values of --dataset.answer; the CONCLUSION is what answers are compared by, and stays in all of them."""

# Changes with the choice of partners.
_FORMAT = "1"
_SEED = 7
# Partners that a row tries at most. One row in 200 has so little room, or so much text, that it tries more than one.
_MOST_PARTNERS = 256

Turns = list[dict[str, str]]


def check_answer_form(form: str) -> None:
    """Raise a UserError where a form of answers is unknown."""
    check_known(form, ANSWER_FORMS, "--dataset.answer")


class Conversations:
    """Turns of every row of an annotation file, with the answers in one form.

    Attributes:
        rows: All rows of the file.
        form: A value of `ANSWER_FORMS`.
    """

    def __init__(self, rows: Rows, form: str, is_cut: Callable[[Row], bool] | None = None) -> None:
        """Look for the stages that the form is about; pair the rows for `shuffled`, once for the file.

        Args:
            rows: All rows of the file.
            form: A value of `ANSWER_FORMS`.
            is_cut: Returns True for a row that is trained on without the end of its last CONCLUSION; None where no row
                is cut.

        Raises:
            UserError: The form is unknown, no answer has these stages, or there is one answer alone to shuffle.
        """
        check_answer_form(form)
        self.rows, self.form, self._is_cut = rows, form, is_cut
        if form != FULL:
            _check_stages(rows, form)
        self._partners = _read_partners(rows) if form == SHUFFLED else None

    def __getitem__(self, index: int) -> Turns:
        """Return the turns of a row, `{"from", "value"}` each."""
        row = self.rows[index]
        if self.form == FULL:
            return row["conversations"]
        if self._partners is not None:
            return self._shuffled(index, row, self._partners)
        return [
            turn | {"value": _rewrite(turn["value"], self.form)} if turn["from"] == "gpt" else turn
            for turn in row["conversations"]
        ]

    def _shuffled(self, index: int, row: Row, partners: NDArray[np.int64]) -> Turns:
        """Return a row's turns with the traces of its partner, or of that one's partner, and so on.

        The first is taken with which the row is cut where it is with its own traces; without such a one, the first.
        """
        partner = int(partners[index])
        if partner < 0:
            return row["conversations"]
        first = _with_traces(row, self.rows[partner])
        if self._is_cut is None:
            return first
        is_cut, turns = self._is_cut(row), first
        for _ in range(_MOST_PARTNERS):
            if self._is_cut(row | {"conversations": turns}) == is_cut:
                return turns
            partner = int(partners[partner])
            if partner in (-1, index):
                break
            turns = _with_traces(row, self.rows[partner])
        return first


def _rewrite(answer: str, form: str) -> str:
    trace = extract_reasoning_trace(answer)
    if trace.conclusion is None:
        return answer
    if form == CONCLUSION:
        return trace.conclusion
    if form == UNTAGGED:
        return STAGE_BREAK.join(text for _, text in trace.texts if text)
    left_out = form.removeprefix(WITHOUT).lower()
    kept: dict[str, Any] = {stage: text for stage, text in trace.texts if stage != left_out}
    return format_reasoning_trace(ReasoningTrace(**kept))


def _with_traces(row: Row, partner: Row) -> Turns:
    """Return a row's turns, the stages before each CONCLUSION being those of its partner's answers in turn."""
    traces = list(_traces(partner))
    turns: Turns = []
    for turn in row["conversations"]:
        trace = extract_reasoning_trace(turn["value"]) if turn["from"] == "gpt" else ReasoningTrace()
        if trace.conclusion is not None:
            other = traces[len(turns) // 2 % len(traces)]
            turn = turn | {"value": format_reasoning_trace(replace(other, conclusion=trace.conclusion))}
        turns.append(turn)
    return turns


def _traces(row: Row) -> Iterator[ReasoningTrace]:
    """Yield the stages of those answers of a row that have a CONCLUSION and something before it."""
    for turn in row["conversations"]:
        trace = extract_reasoning_trace(turn["value"]) if turn["from"] == "gpt" else ReasoningTrace()
        if trace.conclusion is not None and len(trace.texts) > 1:
            yield trace


def _check_stages(rows: Rows, form: str) -> None:
    stage = form.removeprefix(WITHOUT).lower() if form.startswith(WITHOUT) else STAGES[-1]
    for index in range(len(rows)):
        if any(getattr(trace, stage) is not None for trace in _traces(rows[index])):
            return
    raise UserError(
        f"--dataset.answer {form}: no answer in {rows.annotation_file} has a {stage.upper()} beside other stages, so "
        f"that this arm would be the full one; answers in four stages were expected, as LLaVA-CoT-100k has them"
    )


def _read_partners(rows: Rows) -> NDArray[np.int64]:
    """Return the row that each row takes its trace from, -1 where it has none to replace (rows,); made once."""
    key = f"{_FORMAT}:{rows.key}"

    def load(path: Path) -> NDArray[np.int64]:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key or len(arrays["partners"]) != len(rows):
                raise ValueError(f"{path} was made from other rows")
            partners: NDArray[np.int64] = arrays["partners"]
            return partners

    def build(path: Path) -> None:
        partners = _choose_partners(rows)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, key=np.array(key), partners=partners)

    return load_or_build(rows.annotation_file, ".partners.npz", load, build)


def _choose_partners(rows: Rows) -> NDArray[np.int64]:
    """Pair rows of one source and kind; a row that is alone there takes one of its source, else any."""
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    sources: defaultdict[str, list[int]] = defaultdict(list)
    for index in track_items(range(len(rows)), f"Sorting {rows.annotation_file.name} by kind"):
        row = rows[index]
        if (trace := next(_traces(row), None)) is not None:
            groups[source_of(row), _kind(row, trace)].append(index)
            sources[source_of(row)].append(index)
    partners = np.full(len(rows), -1, np.int64)
    rng = np.random.default_rng(_SEED)
    alone: list[tuple[str, int]] = []
    for (source, _), members in groups.items():
        if len(members) == 1:
            alone.append((source, members[0]))
            continue
        # A cycle through the group in a random order: nobody gets its own.
        order = rng.permutation(members)
        partners[order] = np.roll(order, 1)
    everywhere = [member for members in groups.values() for member in members]
    if len(everywhere) == 1:
        raise UserError(
            f"--dataset.answer {SHUFFLED}: one answer alone in {rows.annotation_file} has stages before its "
            "CONCLUSION, so that there are no others to give it; two or more were expected"
        )
    for source, index in alone:
        same = sources[source] if len(sources[source]) > 1 else everywhere
        while partners[index] in (-1, index):
            partners[index] = same[rng.integers(len(same))]
    return partners


def _kind(row: Row, trace: ReasoningTrace) -> str:
    """Return a row's `kind`, else that of its conclusion: an option's letter, a number, yes or no, words."""
    kind: Any = row.get("kind")
    if isinstance(kind, str):
        return kind
    question = without_placeholder(row["conversations"][0]["value"])
    key = conclusion_key(trace.conclusion or "", question)
    assert isinstance(key, tuple)
    return str(key[0])
