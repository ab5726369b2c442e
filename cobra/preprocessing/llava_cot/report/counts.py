"""Report on the rows: counted while they are converted, written as `report.json`, shown as tables."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from cobra.preprocessing.archives import Refusal
from cobra.preprocessing.datasets.row_keys import REMARKS
from cobra.preprocessing.datasets.rows import Defect
from cobra.preprocessing.llava_cot.archive.unpack import Unpacked
from cobra.preprocessing.llava_cot.report.coco_ids import CocoIds, is_visual_genome
from cobra.preprocessing.llava_cot.report.samples import Samples
from cobra.preprocessing.llava_cot.report.token_counts import RowSources, TokenCounts
from cobra.preprocessing.llava_cot.rows.raw_row import Row
from cobra.reasoning.trace import STAGES, extract_reasoning_trace
from cobra.util.conversation import SPECIAL_TOKENS, has_other_markers
from cobra.util.numbers import share
from cobra.util.program import command_line

LICENCE_NOTE = (
    "LLaVA-CoT-100k: the dataset card says apache-2.0; its repository adds that it is a research preview for "
    "non-commercial use, and the terms of OpenAI, whose GPT-4o wrote the answers, hold too. The images carry the "
    "licences of the ten collections that they come from."
)
COCO_NOTE = (
    "coco_ids.json lists the COCO images of the training rows, so that a benchmark on COCO can leave them out. Images "
    "of Visual Genome are partly COCO's too, under other names: they are not in that list."
)

_SHOWN_MEMBERS = 100
_SHOWN_SOURCES = 30


@dataclass
class Report:
    """Counts of one conversion; equal inputs give equal reports, reruns too."""

    rows_read: int = 0
    rows_written: int = 0
    """Training rows."""
    rows_held_out: int = 0
    dropped_turns: int = 0
    """Training and held-out rows whose last question had no answer and was dropped."""
    duplicate_ids: int = 0
    """Training and held-out rows with the id of an earlier row of other content; they are kept."""
    special_tokens: int = 0
    """Training and held-out rows whose texts held a special token of the tokenizer, which was taken out."""
    other_markers: int = 0
    """Training and held-out rows whose texts hold what other tools mark turns with; it is kept, as ordinary text."""
    missing_images: int = 0
    """Distinct image files; rows are under `rejected`."""
    unreadable_images: int = 0
    written_by_source: Counter[str] = field(default_factory=Counter)
    held_out_by_source: Counter[str] = field(default_factory=Counter)
    rejected_by_source: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    """Usable rows, by source, that `--sources` or `--max_samples` left out; their images may not have been checked."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rows by the `Defect` that they were rejected for."""
    turns: Counter[int] = field(default_factory=Counter)
    """Training and held-out rows by their number of questions."""
    answers: int = 0
    """Answers of training and held-out rows; the counts of answers below are theirs, too."""
    valid_answers: int = 0
    """Answers with all four stages, closed, in order, and nothing around them."""
    untagged_answers: int = 0
    """Answers without any stage."""
    missing_stages: Counter[str] = field(default_factory=Counter)
    """Answers with some stage, by each stage that they lack."""
    form_problems: Counter[str] = field(default_factory=Counter)
    """Answers with some stage, by each fault of form."""
    text_only: int = 0
    """Rows without an image."""
    remarks: Counter[str] = field(default_factory=Counter)
    """Rows by the remark on them, though they are used; it follows "rows have"."""
    coco: CocoIds = field(default_factory=CocoIds)
    """COCO images of training rows."""
    visual_genome_rows: int = 0
    """Training rows with images of Visual Genome, which may be COCO's too."""
    tokens: TokenCounts | None = None
    tokens_missing: str | None = "they were not counted"
    """The reason for which `tokens` is None."""
    archive: Unpacked | None = None
    """Outcome of unpacking; None where no archive was there."""
    sources: RowSources = field(default_factory=RowSources)
    samples: Samples = field(default_factory=Samples)

    def count_row(self, row: Row, source: str, held_out: bool = False) -> None:
        """Count a row that was written to the training or the held-out rows, with the image path as published."""
        source = self.sources.name(source)
        self.sources.add(source, held_out)
        self.dropped_turns += row.dropped_turn
        self.special_tokens += row.cleaned
        self.other_markers += any(has_other_markers(turn["value"]) for turn in row.turns)
        self.turns[len(row.answers)] += 1
        self.text_only += row.image is None
        self.remarks.update(remark for bit, remark in enumerate(REMARKS) if row.remarks >> bit & 1)
        traces = [extract_reasoning_trace(answer) for answer in row.answers]
        for trace in traces:
            self.answers += 1
            self.valid_answers += trace.is_valid
            if len(trace.missing) == len(STAGES):
                self.untagged_answers += 1
            else:
                self.missing_stages.update(trace.missing)
                self.form_problems.update(trace.problems)
        if held_out:
            self.rows_held_out += 1
            self.held_out_by_source[source] += 1
            return
        self.rows_written += 1
        self.written_by_source[source] += 1
        self.samples.offer(row, source, traces)
        if row.image is not None:
            self.coco.add(row.image)
            self.visual_genome_rows += is_visual_genome(row.image)

    def count_rejected(self, defect: Defect, source: str, entry: Mapping[str, Any]) -> None:
        """Count a row that was rejected; `entry` has `line`, `id` and `reason`, as the file of rejected rows."""
        self.rejected[defect.value] += 1
        self.rejected_by_source[self.sources.name(source)] += 1
        self.samples.reject(defect, entry)

    def count_left_out(self, source: str) -> None:
        """Count a usable row that `--sources` or `--max_samples` left out."""
        self.left_out[self.sources.name(source)] += 1

    @property
    def by_source(self) -> tuple[Counter[str], ...]:
        """Training, held-out, rejected and left-out rows."""
        return self.written_by_source, self.held_out_by_source, self.rejected_by_source, self.left_out

    @property
    def rejected_share(self) -> float:
        """Share of the rows that were rejected, from 0 to 1; duplicates count neither as rows nor as rejected."""
        duplicates = self.rejected[Defect.DUPLICATE.value]
        return (self.rejected.total() - duplicates) / max(self.rows_read - duplicates, 1)

    def answer_lines(self) -> list[tuple[str, int]]:
        """Return the lines of the answers' table: label and number."""
        lines = [("all four stages in order", self.valid_answers), ("without tags", self.untagged_answers)]
        lines += [(f"without {stage.upper()}", self.missing_stages[stage]) for stage in STAGES]
        return lines + sorted(self.form_problems.items())

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, in a fixed order."""
        value: dict[str, Any] = {}
        for count in fields(self):
            number = getattr(self, count.name)
            if isinstance(number, Counter):
                value[count.name] = {str(key): number[key] for key in sorted(number)}
            elif isinstance(number, int):
                value[count.name] = number
        return {
            **value,
            "coco_ids": self.coco.counts(),
            "tokens": None if self.tokens is None else asdict(self.tokens),
            "tokens_missing": self.tokens_missing,
            "archive": None if self.archive is None else _archive_json(self.archive),
            "licence": LICENCE_NOTE,
        }

    def show(self, console: Console) -> None:
        """Print the rows by source, what is in them and what is wrong with them, and the licence note."""
        console.print(_source_table(self.by_source), _summary(self), soft_wrap=False)
        if self.tokens is None:
            note = f"tokens per row: not known, {self.tokens_missing}. To count them, run again with a network:"
            _print_note(console, f"{note}\n  {command_line('prepare')}, with the same flags")
        for kind, members in () if self.archive is None else _odd_members(self.archive):
            for refusal in members[:5]:
                _print_note(console, f"{kind}: {refusal.member!r} {refusal.reason}", "yellow")
            if len(members) > 5:
                _print_note(console, f"{kind}: {len(members):,} members in all, see report.json", "yellow")
        console.print(LICENCE_NOTE, style="dim", markup=False, soft_wrap=True)


def _archive_json(archive: Unpacked) -> dict[str, Any]:
    value = asdict(archive)
    # How many were new depends on what an earlier run had done.
    del value["new"]
    for kind in ("refused", "damaged"):
        value[f"{kind}_members"] = len(value[kind])
        value[kind] = value[kind][:_SHOWN_MEMBERS]
    return value


def biggest(rows: Counter[str]) -> list[str]:
    """Return the sources by their rows, most first."""
    return sorted(rows, key=lambda name: (-rows[name], name))


def _source_table(counts: tuple[Counter[str], ...]) -> Table:
    table = Table("source", *_right("training", "held out", "rejected", "left out"), box=None)
    sources = biggest(sum(counts, Counter[str]()))
    for source in sources[:_SHOWN_SOURCES]:
        # As text: a name in square brackets is no markup.
        table.add_row(Text(source), *(f"{count[source]:,}" for count in counts))
    if len(sources) > _SHOWN_SOURCES:
        table.add_row(f"and {len(sources) - _SHOWN_SOURCES:,} more", *("see report.json" for _ in counts))
    table.add_row("all", *(f"{count.total():,}" for count in counts), style="bold")
    return table


def _summary(report: Report) -> Table:
    """Return a line for each kind of finding; what does not occur is left out."""
    several = sum(rows for questions, rows in report.turns.items() if questions > 1)
    answers = [
        f"{name} {number:,} ({share(number, report.answers)})" for name, number in report.answer_lines() if number
    ]
    archive = report.archive
    images = {"missing": report.missing_images, "unreadable": report.unreadable_images}
    images |= {} if archive is None else {"unpacked": archive.images, "of these now": archive.new}
    coco = {f"COCO {split}": number for split, number in report.coco.counts().items()}
    kept = {
        "without a last question that has no answer": report.dropped_turns,
        "though an earlier row has the same id": report.duplicate_ids,
        f"without {' or '.join(SPECIAL_TOKENS)} in its texts": report.special_tokens,
        "with what other tools mark turns with, as </s>": report.other_markers,
        **{f"having {remark}": report.remarks[remark] for remark in REMARKS},
    }
    lines = {
        "answers": [f"{report.answers:,} in all", *answers],
        "questions": _counts({"rows with several": several}),
        "rejected rows": _counts(dict(sorted(report.rejected.items()))),
        "rows kept": _counts(kept),
        "image files": _counts(images),
        "images of": _counts(coco | {"Visual Genome": report.visual_genome_rows}),
        "tokens": [] if report.tokens is None else [f"{name} {number}" for name, number in report.tokens.lines()],
    }
    grid = Table.grid("", "", padding=(0, 2))
    for name, parts in lines.items():
        if parts:
            grid.add_row(name, Text("; ".join(parts)))
    return grid


def _counts(numbers: Mapping[str, int]) -> list[str]:
    return [f"{name} {number:,}" for name, number in numbers.items() if number]


def _odd_members(archive: Unpacked) -> tuple[tuple[str, list[Refusal]], ...]:
    return ("refused", archive.refused), ("damaged", archive.damaged)


def _print_note(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _right(*headers: str) -> list[Column]:
    return [Column(header, justify="right") for header in headers]
