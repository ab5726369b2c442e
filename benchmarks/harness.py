"""Parts of every benchmark: interleaved timing, and rows that say what was asked and whether it is met."""

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Row:
    """One measured figure."""

    name: str
    value: float
    unit: str
    """`x` for a ratio against the peer that the name gives."""
    required: str | None = None
    """`<= 0.7` or `>= 4`; None where the figure is only stated."""

    @property
    def met(self) -> bool | None:
        """True where the requirement is met; None where there is none."""
        if self.required is None:
            return None
        relation, bound = self.required.split()
        return self.value <= float(bound) if relation == "<=" else self.value >= float(bound)


def finish(benchmark: str, rows: Sequence[Row]) -> None:
    """Print the rows as a table and, as the last line, as JSON."""
    table = Table("figure", "value", "asked", "met", title=benchmark)
    for row in rows:
        met = {None: "", True: "yes", False: "NO"}[row.met]
        table.add_row(row.name, f"{row.value:,.4g} {row.unit}", row.required or "", met)
    Console(soft_wrap=True).print(table)
    print(json.dumps({"benchmark": benchmark, "rows": [{**asdict(row), "met": row.met} for row in rows]}))


def median_seconds(
    functions: Mapping[str, Callable[[], object]], repeats: int, settle: bool = False
) -> dict[str, float]:
    """Time functions in turn, so that a change in the machine's load meets all of them, and return the medians.

    Args:
        functions: By name; each is called once more, untimed, at the start.
        repeats: Timed rounds.
        settle: Call each once more, untimed, before every timed call, as if it ran by itself. Otherwise short ones pay
            for what the one before left: memory that it freed is given back to the system in their time.
    """
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            if settle:
                function()
            begin = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path | None]:
    """Check a commit out into a folder for a while; None where this is no clone that has it."""
    git = ["git", "-C", str(ROOT), "worktree"]
    added = subprocess.run([*git, "add", "--detach", str(folder), commit], capture_output=True, check=False)
    try:
        yield folder if added.returncode == 0 else None
    finally:
        if added.returncode == 0:
            subprocess.run([*git, "remove", "--force", str(folder)], capture_output=True, check=False)
