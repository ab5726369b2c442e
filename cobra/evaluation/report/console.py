"""Results on the console: the table of scores, what may be claimed, and sample captions."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cobra.evaluation.metrics.base import value
from cobra.evaluation.metrics.significance import Estimate
from cobra.evaluation.report.results import FLOOR_LABELS, SCALE_NOTE, Results, findings, score_text
from cobra.util.printable import printable

# Columns of a screen that hold four variants with floors and ceilings beside them.
_WIDE = 100
_SHOWN_CHARACTERS = 300


def print_results(console: Console, results: Results) -> None:
    """Print the table of all variants with floors and ceilings, and what it proves."""
    n = len(results.images)
    console.print(f"\n[bold]Captions of {n:,} image{'s' * (n > 1)}[/bold]", highlight=False)
    console.print(SCALE_NOTE, highlight=False)
    columns = {
        name.replace("+", "\n+"): {metric: _cell(estimate) for metric, estimate in estimates.items()}
        for name, estimates in results.estimates.items()
    }
    known = {
        FLOOR_LABELS[floor].replace(" ", "\n", 1): {name: score_text(value(metric)) for name, metric in metrics.items()}
        for floor, metrics in results.floors.items()
    }
    labels = {name: results.label(name) for name in results.metrics}
    for group in filter(None, [columns | known] if console.width >= _WIDE else [columns, known]):
        console.print(_table(labels, group))
    for line in [*results.warnings, *(f"- {line}" for line in findings(results, every_pair=True))]:
        console.print(escape(line), highlight=False)
    console.print(f"\n[dim]{escape(results.signature)}[/dim]", highlight=False, soft_wrap=True)


def _table(labels: Mapping[str, str], columns: Mapping[str, Mapping[str, str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    for head in columns:
        table.add_column(head, justify="right")
    for metric, label in labels.items():
        cells = [column.get(metric, "-") for column in columns.values()]
        if set(cells) != {"-"}:
            table.add_row(escape(label), *cells)
    return table


def _cell(estimate: Estimate) -> str:
    value, low, high = (score_text(score) for score in (estimate.value, estimate.low, estimate.high))
    return f"{value}\n[dim]{low}-{high}[/dim]"


def print_samples(console: Console, results: Results, count: int = 3) -> None:
    """Print the first few images' captions: one human's, and what each variant was scored on."""
    for index, image in enumerate(results.images[:count]):
        console.print(f"\n[bold]{escape(printable(image.file_name, _SHOWN_CHARACTERS))}[/bold]", highlight=False)
        captions = [(name, result.captions[index]) for name, result in results.variants.items()]
        for name, text in (("human", image.references[0]), *captions):
            one_line = " ".join(printable(text, _SHOWN_CHARACTERS).split())
            console.print(f"  {name}: {escape(one_line)}", highlight=False)
