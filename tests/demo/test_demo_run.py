import json
from pathlib import Path

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
        demo_run, "_measure", lambda demo: (before, score, [("How many?", "<SUMMARY> [bold] </SUMMARY>")])
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
