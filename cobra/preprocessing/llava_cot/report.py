"""What is in the rows: counted while they are converted, written as `report.json`, shown as tables."""

from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from cobra.preprocessing.datasets.reasoning import STAGES, extract_reasoning_trace
from cobra.preprocessing.llava_cot.rows import Defect, Row
from cobra.preprocessing.llava_cot.unpacking import Unpacked

LICENCE_NOTE = (
    "LLaVA-CoT-100k: the dataset card says apache-2.0; its repository adds that it is a research preview for "
    "non-commercial use, and the terms of OpenAI, whose GPT-4o wrote the answers, hold too. The images carry the "
    "licences of the ten collections that they come from."
)

_SHOWN_MEMBERS = 100


@dataclass
class Report:
    """Counts of one conversion; equal inputs give equal reports, reruns too."""

    rows_read: int = 0
    rows_written: int = 0
    """Training rows."""
    rows_held_out: int = 0
    dropped_turns: int = 0
    """Rows whose last question had no answer and was dropped."""
    missing_images: int = 0
    """Distinct image files; rows are under `rejected`."""
    unreadable_images: int = 0
    duplicate_ids: int = 0
    """Kept rows whose id an earlier row has, with other content."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that `sources` or `max_samples` left out, by source."""
    written_by_source: Counter[str] = field(default_factory=Counter)
    rejected_by_source: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    """Rows by the `Defect` that they were rejected for."""
    turns: Counter[int] = field(default_factory=Counter)
    """Rows by their number of questions."""
    answers: int = 0
    valid_answers: int = 0
    """Answers with all four stages, closed, in order, and nothing around them."""
    untagged_answers: int = 0
    """Answers without any stage."""
    missing_stages: Counter[str] = field(default_factory=Counter)
    """Answers with some stage, by each stage that they lack."""
    form_problems: Counter[str] = field(default_factory=Counter)
    """Answers with some stage, by each fault of form."""
    archive: Unpacked | None = None
    """What came of unpacking; None where no archive was there."""

    @property
    def rejected_share(self) -> float:
        """Share of the rows that was rejected; duplicates count neither as rows nor as rejected."""
        duplicates = self.rejected[Defect.DUPLICATE.value]
        return (self.rejected.total() - duplicates) / max(self.rows_read - duplicates, 1)

    def count_left_out(self, source: str) -> None:
        """Count a row that was not wanted."""
        self.left_out[source] += 1

    def count_row(self, row: Row, source: str, held_out: bool = False) -> None:
        """Count a row that was written."""
        self.rows_written += not held_out
        self.rows_held_out += held_out
        self.dropped_turns += row.dropped_turn
        self.written_by_source[source] += 1
        self.turns[len(row.answers)] += 1
        for answer in row.answers:
            self._count_answer(answer)

    def count_rejected(self, defect: Defect, source: str, entry: dict[str, Any]) -> None:
        """Count a row that was rejected; `entry` is its `{"line", "id", "reason"}`."""
        self.rejected[defect.value] += 1
        self.rejected_by_source[source] += 1

    def _count_answer(self, answer: str) -> None:
        trace = extract_reasoning_trace(answer)
        self.answers += 1
        self.valid_answers += trace.is_valid
        if len(trace.missing) == len(STAGES):
            self.untagged_answers += 1
        else:
            self.missing_stages.update(trace.missing)
            self.form_problems.update(trace.problems)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, in a fixed order."""
        value: dict[str, Any] = {}
        for count in fields(self):
            found = getattr(self, count.name)
            is_counter = isinstance(found, Counter)
            value[count.name] = {str(key): found[key] for key in sorted(found)} if is_counter else found
        if self.archive is not None:
            value["archive"] = archive = asdict(self.archive)
            # How many were new depends on what an earlier run had done.
            del archive["new"]
            for kind in ("refused", "damaged"):
                archive[f"{kind}_members"] = len(archive[kind])
                archive[kind] = archive[kind][:_SHOWN_MEMBERS]
        return {**value, "licence": LICENCE_NOTE}

    def show(self, console: Console) -> None:
        """Print the report as tables, and the licence note."""
        console.print(self._source_table())
        console.print(self._answer_table())
        if self.rejected or self.dropped_turns:
            console.print(self._defect_table())
        if self.archive is not None:
            self._show_archive(self.archive, console)
        console.print(LICENCE_NOTE, style="dim", markup=False, soft_wrap=True)

    def _source_table(self) -> Table:
        table = Table("source", *_right("rows", "rejected"), title="Rows")
        for source in sorted({*self.written_by_source, *self.rejected_by_source}):
            written, rejected = self.written_by_source[source], self.rejected_by_source[source]
            table.add_row(source, f"{written:,}", f"{rejected:,}")
        table.add_section()
        table.add_row("all", f"{self.rows_written:,}", f"{self.rows_read - self.rows_written:,}")
        return table

    def _answer_table(self) -> Table:
        table = Table("answers", *_right("number", "share"), title="Answers")
        lines = [("all four stages in order", self.valid_answers), ("without tags", self.untagged_answers)]
        lines += [(f"without {stage.upper()}", self.missing_stages[stage]) for stage in STAGES]
        lines += sorted(self.form_problems.items())
        for name, number in lines:
            table.add_row(name, f"{number:,}", f"{number / max(self.answers, 1):.1%}")
        table.add_section()
        table.add_row("all", f"{self.answers:,}", "")
        multi = sum(rows for questions, rows in self.turns.items() if questions > 1)
        table.add_row("rows with several questions", f"{multi:,}", "")
        return table

    def _defect_table(self) -> Table:
        table = Table("defect", *_right("rows"), title="Defects")
        for defect, number in sorted(self.rejected.items()):
            table.add_row(f"rejected: {defect}", f"{number:,}")
        if self.dropped_turns:
            table.add_row("kept without a last question that has no answer", f"{self.dropped_turns:,}")
        return table

    @staticmethod
    def _show_archive(archive: Unpacked, console: Console) -> None:
        console.print(f"{archive.images:,} images unpacked, {archive.new:,} of them now", markup=False)
        for kind, members in (("refused", archive.refused), ("damaged", archive.damaged)):
            for refusal in members[:5]:
                console.print(
                    f"{kind}: {refusal.member!r} {refusal.reason}", style="yellow", markup=False, soft_wrap=True
                )
            if len(members) > 5:
                console.print(f"{kind}: {len(members):,} members in all, see report.json", style="yellow")


def _right(*headers: str) -> list[Column]:
    return [Column(header, justify="right") for header in headers]
