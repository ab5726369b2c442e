"""Results on the screen: the story, one table of scores, and a few answers; the page has the rest."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cobra.evaluation.metrics.base import SHOWN_SCALE, value
from cobra.evaluation.metrics.significance import Estimate
from cobra.evaluation.report.results import FLOOR_LABELS, Results, judge, main_pair, score_text
from cobra.evaluation.report.story import findings, story, twins
from cobra.util.printable import printable

_SHOWN_CHARACTERS = 300


def print_results(console: Console, results: Results) -> None:
    """Print the story, the scores of all variants with floors and ceilings, and what must be known of them."""
    console.print(f"\n[bold]{results.words.heading(len(results.images))}[/bold]", highlight=False)
    for line in story(results):
        console.print(escape(line), highlight=False, soft_wrap=True)
    console.print(_table(results))
    for line in [f"{results.scale_note}, \u00b1 half of the 95 % interval.", *results.warnings, *twins(results)]:
        console.print(escape(line), highlight=False, soft_wrap=True)
    for line in findings(results):
        console.print(escape(f"- {line}"), highlight=False, soft_wrap=True)


def _table(results: Results) -> Table:
    """Return the table, in lines as narrow as the screen makes them; details are left to the page."""
    columns: dict[str, Mapping[str, str]] = {
        name.replace("+", "\n+"): {metric: _cell(estimate) for metric, estimate in estimates.items()}
        for name, estimates in results.estimates.items()
    }
    columns |= {
        FLOOR_LABELS[floor].replace(" ", "\n", 1): {name: score_text(value(metric)) for name, metric in metrics.items()}
        for floor, metrics in results.floors.items()
    }
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    table.add_column("")
    for head in columns:
        table.add_column(head, justify="right", min_width=max(map(len, head.split())))
    for metric in results.metrics:
        if not results.metric(metric).is_detail:
            table.add_row(escape(results.label(metric)), *(column.get(metric, "-") for column in columns.values()))
    return table


def _cell(estimate: Estimate) -> str:
    half = SHOWN_SCALE * (estimate.high - estimate.low) / 2
    shown = score_text(estimate.value)
    return shown if shown == "-" else f"{shown} [dim]\u00b1{half:.{int(half < 10)}f}[/dim]"


def print_samples(console: Console, results: Results, count: int = 2) -> None:
    """Print what the main pair of variants said about the first few images, a line each; equal texts share one."""
    pair = main_pair(list(results.variants)) or tuple(results.variants)
    console.print()
    for index, image in enumerate(results.images[:count]):
        lines: dict[str, list[str]] = {}
        for name in pair:
            lines.setdefault(results.variants[name].captions[index], []).append(name)
        reference = f"{results.words.reference}: {_one_line(image.references[0])}"
        head = f"[bold]{escape(_one_line(image.file_name))}[/bold] "
        marks = {True: ", right", False: ", wrong", None: ""}
        said = [
            f"{' = '.join(names)}{marks[judge(results.variants[names[0]], index)]}: {_one_line(text)}"
            for text, names in lines.items()
        ]
        if image.question:
            head, said = head + escape(_one_line(image.question)), [reference, *said]
        else:
            head += escape(reference)
        for line in (head, *(f"  {escape(line)}" for line in said)):
            console.print(line, highlight=False, no_wrap=True, overflow="ellipsis")


def _one_line(text: str) -> str:
    return " ".join(printable(text, _SHOWN_CHARACTERS).split())
