"""The results of all benchmarks as one page: `RESULTS.md`, and `results.json` from which it is made."""

import ast
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cobra.util.files import read_json, write_json, write_text

FOLDER = Path(__file__).parent
STORE = FOLDER / "results.json"
PAGE = FOLDER / "RESULTS.md"

# This project's parts that matter for speed, and the peers.
_PACKAGES = ("torch", "transformers", "numba", "numpy", "pillow", "datasets", "mambapy", "pycocoevalcap")

Result = dict[str, Any]


def describe_machine() -> dict[str, str]:
    """Return what figures depend on, by name: processor, memory, system and versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    described = {
        "Processor": f"{_processor()}, {count} cores",
        "Memory": f"{memory / 2**30:.0f} GiB",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "System": f"{platform.system()}, {platform.machine()}",
        "Python": platform.python_version(),
        "Threads of torch": str(torch.get_num_threads()),
    }
    for name in _PACKAGES:
        try:
            described[name] = version(name)
        except PackageNotFoundError:
            described[name] = "not installed"
    return described


def _processor() -> str:
    """Return the processor's name, and what decides how wide its instructions are."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    name = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    return f"{name or platform.processor() or 'unknown'} ({torch.backends.cpu.get_cpu_capability()})"


def describe_source() -> str:
    """Return the commit that is measured, with a word on changes that are not in it; empty outside of git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(FOLDER), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "--short=10", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!RESULTS.md", ":!results.json")
    changed += git("status", "--porcelain", "--untracked-files=no", "--", "../cobra")
    return f"{commit} and changes since" if commit and changed else commit


def new_result(printed: Mapping[str, Any], seconds: float) -> Result:
    """Return what is kept of a benchmark.

    Args:
        printed: Its last line.
        seconds: That it took.
    """
    return {
        **{"benchmark": printed["benchmark"], "date": date.today().isoformat(), "source": describe_source()},
        **{"seconds": round(seconds), "machine": describe_machine(), "rows": printed["rows"]},
    }


def keep(name: str, result: Result) -> None:
    """Put a benchmark's result in place of its last one, and write the page anew."""
    results = dict(sorted((read_results() | {name: result}).items()))
    write_json(STORE, results)
    write_text(PAGE, page(results))


def read_results() -> dict[str, Result]:
    """Return the results by name, of benchmarks that there are."""
    kept = read_json(STORE, "the results of benchmarks", "make bench makes them anew") if STORE.is_file() else {}
    return {name: result for name, result in kept.items() if (FOLDER / f"{name}.py").is_file()}


def page(results: Mapping[str, Result]) -> str:
    """Return the page in Markdown; where no machine had a GPU, it says so."""
    machines: list[dict[str, str]] = []
    for result in results.values():
        if result["machine"] not in machines:
            machines.append(result["machine"])
    asked = [row for result in results.values() for row in result["rows"] if row["met"] is not None]
    missed = [(name, row) for name, result in results.items() for row in result["rows"] if row["met"] is False]
    gpus = sorted({machine["GPU"] for machine in machines if machine.get("GPU", "none") != "none"})
    on_gpus = f"These machines had a GPU: {', '.join(gpus)}." if gpus else "Nothing was measured on a GPU."
    lines = [
        "# Results of the benchmarks",
        "",
        "Made by `make bench`; `python benchmarks/run_all.py --only NAME` measures one again. Ratios are against the",
        "peer that a row names, measured in the same run; `asked` is what this project demands of itself.",
        "",
        on_gpus,
        "",
        f"{len(asked) - len(missed)} of {len(asked)} requirements are met{':' if missed else '.'}"
        + ("" if not missed else " these are not:"),
        "",
    ]
    if missed:
        lines += [f"- {name}: {row['name']}: {_value(row)}, asked {row['required']}" for name, row in missed] + [""]
    for number, machine in enumerate(machines, 1):
        lines += [f"## {_machine_name(number, machines)}", "", "| | |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in machine.items()] + [""]
    for name, result in results.items():
        where = f" on {_machine_name(machines.index(result['machine']) + 1, machines).lower()}"
        lines += _section(name, result, where if len(machines) > 1 else "")
    return "\n".join(lines)


def _machine_name(number: int, machines: list[dict[str, str]]) -> str:
    return f"Machine {number}" if len(machines) > 1 else "Machine"


def _section(name: str, result: Result, where: str) -> list[str]:
    told = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""
    source = f" at {result['source']}" if result["source"] else ""
    return [
        *(f"## {name}", "", *told.splitlines(), ""),
        f"`{result['benchmark']}`, measured on {result['date']}{source} in {result['seconds']:,} s{where}.",
        *("", "| figure | value | asked | met |", "|---|---:|---|---|"),
        *(
            f"| {row['name']} | {_value(row)} | {row['required'] or ''} | {_MET[row['met']]} |"
            for row in result["rows"]
        ),
        "",
    ]


_MET = {None: "", True: "yes", False: "**no**"}


def _value(row: Mapping[str, Any]) -> str:
    return f"{row['value']:,.4g} {row['unit']}".strip()
