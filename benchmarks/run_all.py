"""Run the benchmarks one after the other and write `benchmarks/RESULTS.md`; `make bench` calls this."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from harness_results import FOLDER, PAGE, keep, new_result, read_results

from cobra.util import cli
from cobra.util.errors import UserError

# Nine fine-tunes take an hour: it is run by hand.
_APART = ("run_all", "quantized_lora")
NAMES = sorted(
    file.stem for file in FOLDER.glob("*.py") if not file.stem.startswith("harness") and file.stem not in _APART
)


@dataclass
class AllBenchmarks:
    """Run all benchmarks, or some; each one's result is kept as soon as it is there."""

    only: tuple[str, ...] = ()
    """Names of those to run; the last results of the others stay. By default all."""


def run_one(name: str) -> str | None:
    """Run a benchmark and keep its result; return why there is none, or None."""
    begin = time.perf_counter()
    # Tables of the width of a page, although a pipe is read.
    environment = os.environ | {"COLUMNS": "120"}
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    *shown, last = process.stdout.splitlines() or [""]
    print("\n".join(shown if process.returncode == 0 else [*shown, last]), flush=True)
    if process.returncode != 0:
        return f"it ended with exit code {process.returncode}"
    printed: dict[str, Any] = json.loads(last)
    if not printed["rows"]:
        return str(printed["benchmark"])
    keep(name, new_result(printed, time.perf_counter() - begin))
    return None


def main(config: AllBenchmarks) -> int:
    """Run them, and say what was met; 1 where one has no result."""
    unknown = sorted(set(config.only) - set(NAMES))
    if unknown:
        raise UserError(f"there is no benchmark {', '.join(unknown)}; there are: {', '.join(NAMES)}")
    names = list(config.only) or NAMES
    without: dict[str, str] = {}
    for place, name in enumerate(names):
        print(f"\n{name} ({place + 1} of {len(names)})", flush=True)
        try:
            reason = run_one(name)
        except KeyboardInterrupt:
            print(f"\nto go on: python benchmarks/run_all.py --only {','.join(names[place:])}", file=sys.stderr)
            raise
        if reason is not None:
            without[name] = reason
    rows = [row for name, result in read_results().items() if name in names for row in result["rows"]]
    asked = [row["met"] for row in rows if row["met"] is not None]
    print(f"\n{sum(asked)} of {len(asked)} requirements are met; all figures: {PAGE}")
    for name, reason in without.items():
        print(f"{name} has no new result: {reason}", file=sys.stderr)
    return 1 if without else 0


if __name__ == "__main__":
    cli.run(main, AllBenchmarks)
