"""What the documents show of programs is what these do: commands run, and quoted figures are the programs' own."""

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import requires
from itertools import pairwise
from pathlib import Path
from subprocess import DEVNULL

import pytest
from packaging.requirements import Requirement
from PIL import Image
from rich.console import Console
from test_docs import ALL_COMMANDS, DOCUMENTS, ROOT, blocks, read

from cobra.__main__ import main
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
    return subprocess.run([*start, *words], cwd=folder, env=environment, stdin=DEVNULL, capture_output=True, text=True)


@pytest.fixture
def run_here(tmp_path, monkeypatch, capfd) -> Callable[..., str]:
    """Run a documented `cobra-vlm` in this process and a folder of its own, with what is typed while it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run_command(words: Iterable[str], typed: str = "") -> str:
        command, *arguments = words
        assert command == "cobra-vlm"
        monkeypatch.setattr(sys, "argv", [f"/usr/bin/{command}", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode()), encoding="utf-8"))
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capfd.readouterr()
        assert not stop.value.code and printed.out, (arguments, printed.err)
        return printed.out

    return run_command


def test_short_commands_run(run_here):
    short = {tuple(words): None for _, words in ALL_COMMANDS if is_short(words)}
    assert {words[1] for words in short} >= {"doctor", "completion", "train"}
    for words in short:
        run_here(words)


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
    assert all(f"`{script}`" in named[name.split()[0]] for name, script in SCRIPTS.items())


@pytest.mark.fault("E14")
def test_page_on_clusters_names_repositories_and_drivers():
    page = read("docs/cluster.md")
    assert all(f"`{repository}`" in page for repository in repositories("cobra+3b"))
    assert all(f"{driver} for CUDA {cuda}" in page for cuda, driver in _LOWEST_DRIVER.items())
    assert all(f"]({script})" in page for script in ("slurm.sh", "torchrun.sh"))


@pytest.fixture
def own_rows(tmp_path) -> Path:
    """The folder that the documents call `my`, with their example rows and pictures."""
    images = tmp_path / "my" / "images"
    (images / "kitchen").mkdir(parents=True)
    for name in ("kitchen.jpg", "kitchen/0001.jpg"):
        Image.new("RGB", (64, 48), (180, 40, 40)).save(images / name)
    return tmp_path / "my"


def commands_with(document: str, *texts: str) -> list[list[str]]:
    """Return the commands of the one block of a document that holds these texts."""
    [block] = [block for block in blocks(document, "bash") if all(text in block for text in texts)]
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


def in_short(words: list[str]) -> list[str]:
    """Return a training command with two steps of two rows."""
    sizes = (
        f"--model.{stage}_{size}_batch_size" for stage in ("align", "finetune") for size in ("global", "per_device")
    )
    return [re.sub("^20$", "2", word) for word in words] + [word for size in sizes for word in (size, "2")]


@pytest.mark.fault("E12")
def test_the_packages_way_in_runs(own_rows, tmp_path, run_here):
    (own_rows / "rows.json").write_text(blocks("README.md", "json")[0])
    check, train, chat, export = commands_with("README.md", "--dataset.dataset_root_dir my")
    run_here(check)
    done = run(in_short(train), tmp_path)
    assert done.returncode == 0 and "done: 2 steps" in done.stdout, done.stderr
    run_here(chat, "What is on the table?\nq\n")
    run_here(export)
    assert (tmp_path / "exported" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.fault("E13")
def test_the_align_stage_runs_on_its_rows_and_fine_tuning_on_the_others(own_rows, tmp_path):
    (own_rows / "captions.json").write_text(blocks("docs/train.md", "json")[0])
    (own_rows / "rows.json").write_text(blocks("docs/prepare.md", "json")[0])
    align, finetune = commands_with("docs/train.md", "--stage align")
    for words in (align, finetune):
        done = run(in_short(words), tmp_path)
        assert done.returncode == 0 and "done: 2 steps" in done.stdout, done.stderr


@pytest.mark.fault("E13")
def test_what_is_no_placeholder_is_there():
    """Folders below runs/ are made by another command of the documents; pictures are the demo's or one's own."""
    texts = [" ".join(words) for _, words in ALL_COMMANDS] + [block for d in DOCUMENTS for block in blocks(d, "bash")]
    made = {"runs/demo", "runs/llava-cot-100k+cobra+3b+stage-finetune+x7"}
    for text in texts:
        made |= {f"runs/{name}" for name in re.findall(r"--run_id (\S+)", text)}
        made |= {*re.findall(r"(?:--output_dir |--study_dir |^RUN=)(\S+)", text, re.MULTILINE)}
    for document, words in ALL_COMMANDS:
        for flag, value in pairwise(words):
            if (
                value.startswith("runs/")
                and "<" not in value
                and flag not in ("--output_dir", "--run_root_dir", "--study_dir")
            ):
                assert any(Path(value).is_relative_to(folder) for folder in made), (document, value)
            if flag == "--image":
                assert value.startswith(("runs/", "my/", "<")), (document, value)


@pytest.mark.fault("E13")
def test_what_the_documents_have_one_write_does_not_show_in_git_status():
    names = ["my/rows.json", "runs/x", "data/x", "exported/x", ".hf_token", "slurm-17.txt"]
    done = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == names


@pytest.mark.fault("E1")
def test_the_vendors_kernels_are_built_after_their_tools():
    tools, build = commands_with("FINETUNING_GUIDE.md", "--no-build-isolation")
    assert {"wheel", "ninja", "setuptools>=77"} <= {*tools} and "cobra-vlm[cuda]" in build


@pytest.mark.fault("E14")
def test_tested_versions_are_those_that_are_needed():
    [row] = [row for row in read("README.md").splitlines() if row.startswith("| **On** |")]
    named = dict(re.findall(r"(\w+) (\d[\d.]*\d)", row))
    needed = {Requirement(text).name: Requirement(text) for text in requires("cobra-vlm") or [] if ";" not in text}
    assert {"torch", "torchvision", "transformers", "timm"} <= named.keys()
    assert all(needed[name].specifier.contains(number) for name, number in named.items() if name != "Python")
