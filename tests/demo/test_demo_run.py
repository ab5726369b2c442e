import json
import os
import re
import subprocess
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

import pytest

from cobra.demo import run as demo_run
from cobra.demo.accuracy import AnswerScore, KindScore
from cobra.demo.config import DemoConfig
from cobra.demo.run import run_demo
from cobra.evaluation.config import BenchmarkConfig
from cobra.training.pretrain import PretrainConfig
from cobra.util.cli import parse
from cobra.util.errors import UserError
from cobra.util.files import write_json

ROOT = Path(__file__).parents[2]


def small(tmp_path):
    return DemoConfig(output_dir=tmp_path / "demo", rows=60, steps=2, caption_images=4, questions=7)


class Commands:
    """Records the demonstration's commands and writes what the benchmark would."""

    def __init__(self, output_dir, returncode=0):
        self.lines, self.output_dir, self.returncode = [], output_dir, returncode

    def __call__(self, words, **options):
        self.lines.append(words)
        write_json(self.output_dir / "benchmark" / "metrics.json", {"n": 4, "variants": {}})
        return self


@pytest.fixture
def commands(tmp_path, monkeypatch):
    recorder = Commands(tmp_path / "demo")
    monkeypatch.setattr(demo_run.subprocess, "run", recorder)
    score = AnswerScore(valid=6, kinds={"count": KindScore(7, 5, 3)})
    before = AnswerScore(valid=0, kinds={"count": KindScore(7, 1, 3)})
    monkeypatch.setattr(
        demo_run, "_measure", lambda demo: (before, score, ("How many?", "<SUMMARY> [bold] </SUMMARY>"))
    )
    return recorder


def test_the_three_commands_are_those_of_a_user_and_parse(tmp_path, commands, capsys):
    summary = run_demo(small(tmp_path))
    prepare, train, score = commands.lines
    assert prepare[1:] == [
        str(ROOT / "fine_tune/prepare_llava_cot.py"),
        "--dataset_root",
        str(tmp_path / "demo" / "data"),
        "--llm_backbone_id",
        "mamba-0.5m-zephyr",
    ]
    assert train[1:3] == ["-m", "torch.distributed.run"]
    script = train.index(str(ROOT / "scripts/pretrain.py"))
    config = parse(PretrainConfig, train[script + 1 :])
    assert config.model.model_id == "cobra-tiny" and config.dataset.dataset_id == "llava-cot-100k"
    assert config.pretrained_checkpoint == "cobra-tiny" and config.stage == "finetune"
    benchmark = parse(BenchmarkConfig, score[2:])
    assert benchmark.checkpoint == str(config.run_root_dir / config.run_id)
    assert Path(benchmark.coco_annotations).is_file() and benchmark.image_dir.is_dir()
    printed = capsys.readouterr().out
    assert "$ torchrun --standalone --nnodes 1 --nproc-per-node 2 scripts/pretrain.py" in printed
    assert "[bold]" in printed
    assert summary == json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["answers"]["overall"]["accuracy"] == pytest.approx(5 / 7)


def test_a_second_run_starts_afresh(tmp_path, commands):
    run_demo(small(tmp_path))
    (tmp_path / "demo" / "stale").write_text("x")
    run_demo(small(tmp_path))
    assert not (tmp_path / "demo" / "stale").exists()


def test_a_folder_of_others_is_not_touched(tmp_path, commands):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="did not write"):
        run_demo(small(tmp_path))
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "x" and not commands.lines


def test_a_failed_command_ends_the_demonstration(tmp_path, commands):
    commands.returncode = 2
    with pytest.raises(UserError, match="'prepare' of the demonstration ended with code 2"):
        run_demo(small(tmp_path))
    assert len(commands.lines) == 1


@pytest.mark.fault("E10")
def test_the_log_of_the_demonstration_is_short_and_says_what_came_out(tmp_path):
    """All parts on a small demonstration; the full one differs in the table's numbers alone."""
    folder = tmp_path / "demo"
    sizes = ("--rows", "120", "--steps", "12", "--caption_images", "4", "--questions", "7", "--batch_size", "4")
    command = [sys.executable, "-m", "cobra", "demo", "--output_dir", str(folder), *sizes]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(command, stdout=PIPE, stderr=STDOUT, stdin=DEVNULL, text=True, env=environment, timeout=600)
    log = done.stdout
    assert done.returncode == 0, log
    # Beside them come, on a slow machine, the lines about what is waited for.
    lines = [line for line in log.splitlines() if not line.endswith(" ...")]
    assert len(lines) <= 110, log
    assert [f"-- part {number} of 5, " in log for number in range(1, 6)] == [True] * 5
    assert not re.search(r"\b[Ww]arning", log) and "Traceback" not in log and "tokens per row: not known" not in log
    end = log[log.index("what came out") :]
    assert re.search(r"four stages in order: \d+ of 7 answers before, \d+ after", end)
    for command in ("chat", "serve", "train --help"):
        assert f"cobra-vlm {command}" in end
    # Whatever it names at the end is there.
    named = [line.partition(":")[2].strip() for line in end.splitlines() if ": " in line and str(folder) in line]
    files = [name.partition(",")[0] for name in named if name.startswith(str(folder))]
    assert len(files) == 4 and all(Path(name).is_file() for name in files), end
