"""The report as one page, `report.html`: no network, no script, the pictures inside."""

from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from jinja2 import Template

from cobra.preprocessing.llava_cot.report.counts import COCO_NOTE, LICENCE_NOTE, Report, biggest
from cobra.preprocessing.llava_cot.report.samples import SampleRow
from cobra.preprocessing.llava_cot.report.token_counts import TokenCounts
from cobra.util.html_pages import Thumbnail, page_templates, thumbnail
from cobra.util.numbers import percent
from cobra.util.printable import printable
from cobra.util.program import command_line

_SOURCES = 30
_SAMPLED_SOURCES = 12
# Rows with their answers that the page begins with.
_FEATURED = 6
# Flags of the command that comes next.
_TRAINING = "--dataset.type llava-cot-100k --model.type cobra-3b --pretrained_checkpoint cobra+3b".split()
_MEMBERS = 100
# Of a name or reason from the archive.
_CHARACTERS = 300

# Questions a row has: each number to here by itself, then these spans.
_SINGLE = 5
_SPANS = ((6, 10), (11, 20))


class Bar(NamedTuple):
    """A line of a chart."""

    label: str
    number: int
    share: float
    """Share of the whole that the chart divides, from 0 to 1; the bar's length."""


class SourceBar(NamedTuple):
    """The rows of one source."""

    label: str
    numbers: tuple[int, ...]
    """Training, held out, rejected, left out."""
    widths: tuple[float, ...]
    """The same as shares of the biggest source."""


class Column(NamedTuple):
    """A bin of the histogram."""

    label: str
    rows: int
    height: float
    """Share of the fullest bin."""


def render_page(report: Report, image_dir: Path) -> str:
    """Return the page's HTML; equal reports and images give equal text.

    Args:
        report: The report.
        image_dir: Folder that the rows' published image paths are relative to.
    """
    tokens = report.tokens
    featured, samples = _sampled(report, image_dir)
    return _template().render(
        report=report,
        story=_story(report),
        featured=featured,
        next_command=command_line("train", *_TRAINING),
        sources=_source_bars(report),
        all_sources=[count.total() for count in report.by_source],
        questions=_question_bars(report.turns),
        answers=[Bar(name, number, number / max(report.answers, 1)) for name, number in report.answer_lines()],
        defects=_share_bars(sorted(report.rejected.items())),
        histogram=[] if tokens is None else _histogram(tokens),
        limit_at=0 if tokens is None else _limit_position(tokens),
        samples=samples,
        max_members=_MEMBERS,
        coco_note=COCO_NOTE,
        count_tokens=command_line("prepare"),
        licence=LICENCE_NOTE,
    )


@cache
def _template() -> Template:
    environment = page_templates("cobra.preprocessing.llava_cot.report")
    environment.filters |= {
        # A share as a length of CSS.
        "css": lambda share: f"{100 * share:.2f}%",
        "short": partial(printable, limit=_CHARACTERS),
    }
    return environment.get_template("report.html.j2")


def _source_bars(report: Report) -> list[SourceBar]:
    """Return the biggest sources, the rest as one line."""
    counts = report.by_source
    names = biggest(sum(counts, Counter[str]()))
    lines = [(name, [count[name] for count in counts]) for name in names[:_SOURCES]]
    if smaller := names[_SOURCES:]:
        lines.append((f"{len(smaller):,} smaller sources", [sum(count[name] for name in smaller) for count in counts]))
    most = max((sum(numbers) for _, numbers in lines), default=1)
    return [SourceBar(name, tuple(numbers), tuple(number / most for number in numbers)) for name, numbers in lines]


def _question_bars(turns: Counter[int]) -> list[Bar]:
    bins = Counter[str]()
    for questions, rows in turns.items():
        bins[_question_label(questions)] += rows
    firsts = (*range(1, _SINGLE + 1), *(first for first, _ in _SPANS), _SPANS[-1][1] + 1)
    order = [_question_label(first) for first in firsts]
    return _share_bars([(label, bins[label]) for label in order if bins[label]])


def _question_label(questions: int) -> str:
    if questions <= _SINGLE:
        return str(questions)
    return next((f"{first} to {last}" for first, last in _SPANS if questions <= last), f"more than {_SPANS[-1][1]}")


def _share_bars(lines: Sequence[tuple[str, int]]) -> list[Bar]:
    total = max(sum(number for _, number in lines), 1)
    return [Bar(name, number, number / total) for name, number in lines]


def _histogram(tokens: TokenCounts) -> list[Column]:
    most = max(tokens.bin_rows)
    ends = [f" to {end - 1:,}" for end in tokens.bin_edges[1:]] + [" and more"]
    return [
        Column(f"{edge:,}{end}", rows, rows / most)
        for edge, end, rows in zip(tokens.bin_edges, ends, tokens.bin_rows, strict=True)
    ]


def _limit_position(tokens: TokenCounts) -> float:
    """Return where `llm_max_length` lies on the histogram's axis, from 0 to 1; in the open bin it is at its end."""
    edges, limit = tokens.bin_edges, tokens.llm_max_length
    return 1.0 if limit > edges[-1] else limit / (edges[1] * len(edges))


def _story(report: Report) -> list[str]:
    """Return in at most three sentences what became of the rows, and what training may trip over."""
    uses = {
        "for training": report.rows_written,
        "held out": report.rows_held_out,
        "left out by the flags": report.left_out.total(),
        "rejected": report.rejected.total(),
    }
    used = ", ".join(f"{number:,} {use}" for use, number in uses.items() if number)
    sentences = [f"{_count(report.rows_read, 'row')} read: {used or 'none is of use'}."]
    if report.answers:
        valid = percent(report.valid_answers / report.answers)
        sentences.append(f"{valid} % of {_count(report.answers, 'answer')} have all four stages in order.")
    if report.tokens is None:
        sentences.append("It is not known how many CONCLUSIONs training would cut off: tokens were not counted.")
    else:
        cut, limit = report.tokens.conclusion_cut, report.tokens.llm_max_length
        rows = f"{_count(cut, 'row')} lose{'s' * (cut == 1)}" if cut else "No row loses"
        sentences.append(f"{rows} a CONCLUSION, or a part of one, where training cuts at {limit:,} tokens.")
    return sentences


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


_Shown = tuple[SampleRow, Thumbnail | str | None]


def _sampled(report: Report, image_dir: Path) -> tuple[list[tuple[str, _Shown]], list[tuple[str, list[_Shown]]]]:
    """Return samples of the biggest sources with their pictures: why there is none, or None for a row of text.

    Returns:
        Rows to begin with, of as many sources as can be, each with its source; and the others by source.
    """
    names = biggest(report.written_by_source)[:_SAMPLED_SOURCES]
    rows = [(name, row) for name in names for row in report.samples.of_source(name)]
    turn = {id(row): place for name in names for place, row in enumerate(report.samples.of_source(name))}
    first = sorted(rows, key=lambda entry: turn[id(entry[1])])[:_FEATURED]
    featured = {id(row) for _, row in first}

    def shown(row: SampleRow) -> _Shown:
        return row, None if row.image is None else thumbnail(image_dir / row.image)

    others = {name: [shown(row) for of, row in rows if of == name and id(row) not in featured] for name in names}
    return [(name, shown(row)) for name, row in first], [(name, kept) for name, kept in others.items() if kept]
