"""What the documents show of programs is what these do: commands run, and quoted figures are the programs' own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from test_docs import ALL_COMMANDS, ROOT, blocks, read

from cobra.commands import NAMES
from cobra.doctor.cached import repositories
from cobra.doctor.machine import _LOWEST_DRIVER
from cobra.training.config import PretrainConfig
from cobra.training.planning.plan import show_plan
from cobra.util.cli import parse
from cobra.util.program import SCRIPTS

SHORT = {"doctor", "completion"}


def is_short(words: list[str]) -> bool:
    return words[0] == "cobra-vlm" and (words[1] in SHORT or bool({"--help", "--dry_run"} & {*words}))


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run a documented command in a folder."""
    start = {"cobra-vlm": [sys.executable, "-m", "cobra"], "python": [sys.executable]}[words[0]]
    words = [str(ROOT / word) if word.endswith(".py") else word for word in words[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*start, *words], cwd=folder, env=environment, capture_output=True, text=True)


def test_short_commands_run(tmp_path):
    short = {tuple(words): None for _, words in ALL_COMMANDS if is_short(words)}
    assert {words[1] for words in short} >= {"doctor", "completion", "train"}
    for words in short:
        done = run([*words], tmp_path)
        assert done.returncode == 0 and done.stdout, (words, done.stderr)


@pytest.mark.fault("E14")
def test_quoted_plan_is_the_plan():
    """The lines that the page on clusters shows are printed by the command that it names."""
    planned = {tuple(words) for document, words in ALL_COMMANDS if document == "docs/cluster.md"}
    [words] = [words for words in planned if "--plan.world_size" in words]
    config = parse(PretrainConfig, words[2:])
    console = Console(width=200)
    with console.capture() as captured:
        show_plan(config, config.run_root_dir / "quoted", console)
    printed = {" ".join(re.sub(r"[^\x20-\x7e]", " ", line).split()) for line in captured.get().splitlines()}
    [quoted] = [block for block in blocks("docs/cluster.md", "text") if block.startswith("Plan of")]
    assert len(quoted.splitlines()) > 8
    assert {" ".join(line.split()) for line in quoted.splitlines()} <= printed


def test_commands_have_their_row_and_scripts():
    rows = [row for row in read("docs/commands.md").splitlines() if row.startswith("| `cobra-vlm ")]
    named = {name: row for row in rows for name in re.findall(r"`cobra-vlm (\w+)`", row)}
    assert named.keys() == {*NAMES}
    assert all(f"`{script}`" in named[name] for name, script in SCRIPTS.items())


@pytest.mark.fault("E14")
def test_page_on_clusters_names_repositories_and_drivers():
    page = read("docs/cluster.md")
    assert all(f"`{repository}`" in page for repository in repositories("cobra+3b"))
    assert all(f"{driver} for CUDA {cuda}" in page for cuda, driver in _LOWEST_DRIVER.items())
    assert all(f"]({script})" in page for script in ("slurm.sh", "torchrun.sh"))
