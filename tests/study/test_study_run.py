"""A study from its flags to its page: arms train as programs, what is there is taken, and nothing is left running."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from cobra.models.run_folder import find_checkpoint
from cobra.study.cells import Trainings, cells_of
from cobra.study.exam import CAPTIONS, CONCLUSIONS, Score, conclusion_of
from cobra.study.report import PAGE, RESULT
from cobra.study.run import run_study
from cobra.study.scenes import SCENE_KINDS
from cobra.util.errors import UserError
from cobra.util.files import sha256_file

ROOT = Path(__file__).parents[2]


def keep_score(config, name, share):
    """Leave the score of the start, or of a cell whose checkpoint has been deleted since, as an earlier start does."""
    values = (np.random.default_rng(len(name)).random(21) < share).astype(float).tolist()
    file = config.study_dir / "scores" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    start = sha256_file(find_checkpoint("cobra-tiny").path)
    file.write_text(json.dumps(asdict(Score({CONCLUSIONS: values}, 9.0, 0.1, 1.0, start))))
    run = config.study_dir / "runs" / name
    run.mkdir(parents=True, exist_ok=True)
    (run / "finished.json").write_text("{}")


def test_a_cell_trains_and_answers_and_a_failed_one_costs_itself(change, capsys):
    """One arm really trains; another seed's training fails; the other cells were there before."""
    config = change(arms=("full", "conclusion"), seeds=(1, 2, 3), max_images=2)
    for cell in cells_of(config)[1:]:
        keep_score(config, cell.name, 0.5)
    # No run can begin where a file is.
    (config.study_dir / "scores" / "full-3.json").unlink()
    (config.study_dir / "runs" / "full-3" / "finished.json").unlink()
    (config.study_dir / "runs" / "full-3").rmdir()
    (config.study_dir / "runs" / "full-3").write_text("")
    run_study(config)
    told = capsys.readouterr().out
    assert "2 arms: full, conclusion; 3 seeds; 21 questions" in told and "full-1: step 2/2" in told
    assert "full-3 failed and is left out: the training of the arm full with seed 3 ended with code" in told
    result = json.loads((config.study_dir / RESULT).read_text())
    assert list(result["failed"]) == ["full-3"]
    assert {arm: len(models) for arm, models in result["arms"].items()} == {"start": 1, "full": 2, "conclusion": 3}
    assert result["arms"]["full"][0]["tokens"] <= 8 and len(result["arms"]["full"][0]["sha256"]) == 64
    assert "## Arms that failed" in (config.study_dir / PAGE).read_text()
    run = json.loads((config.study_dir / "runs" / "full-1" / "config.json").read_text())
    assert (run["dataset"]["answer"], run["seed"]) == ("full", 1)
    # What is there is taken as it is: nothing trains or answers again.
    (config.study_dir / "runs" / "full-3").unlink()
    keep_score(config, "full-3", 0.5)
    before = (config.study_dir / "scores" / "full-1.json").stat().st_mtime_ns
    run_study(config)
    assert "step 2/2" not in capsys.readouterr().out
    file = config.study_dir / "scores" / "full-1.json"
    assert file.stat().st_mtime_ns == before
    # The score of a run that was deleted and trained again is made again.
    right = json.loads(file.read_text())
    file.write_text(json.dumps(right | {"sha256": "0" * 64, "values": {CONCLUSIONS: [1.0] * 21}}))
    run_study(config)
    assert "full-1: its score is that of other weights, and is made again" in capsys.readouterr().out
    again = json.loads(file.read_text())
    assert (again["sha256"], again["values"]) == (right["sha256"], right["values"])


def test_fewer_than_two_arms_are_nothing_to_compare(change, monkeypatch):
    config = change(arms=("full", "conclusion"), seeds=(1,))
    keep_score(config, "start", 0.1)
    keep_score(config, "full-1", 0.5)

    def train(self, cell, steps):
        if cell.arm == "full":
            return self._config.study_dir / "runs" / cell.name
        raise UserError("out of memory")

    monkeypatch.setattr(Trainings, "train", train)
    with pytest.raises(UserError, match=r"nothing to compare: 1 arm \(conclusion\) gave no score"):
        run_study(config)


def test_captions_are_scored_where_they_are_given(change, scene_rows, capsys):
    captions = {f"{number:06d}.png": ["A red circle at the top."] for number in range(4)}
    file = scene_rows / "captions.json"
    file.write_text(json.dumps(captions))
    config = change(arms=("full", "conclusion"), coco_annotations=str(file), image_dir=scene_rows / "images")
    for cell in cells_of(config):
        keep_score(config, cell.name, 0.5)
    run_study(config)
    start = json.loads((config.study_dir / RESULT).read_text())["arms"]["start"][0]
    assert [len(start["values"][measure]) for measure in (CONCLUSIONS, CAPTIONS)] == [21, 4]
    assert f"% {CAPTIONS}" in capsys.readouterr().out


def test_untagged_answers_are_read_by_their_last_paragraph():
    text = "I count.\n\nA red circle.\n\nOne circle.\n\n1"
    assert conclusion_of(text, "untagged", "2") == "1" and conclusion_of(text, "conclusion", "2") == text
    assert conclusion_of(f"{text}\n\n", "untagged", "2") == "1"


def test_untagged_conclusions_of_several_paragraphs_are_read_whole():
    right = "First this.\n\nThen that."
    assert conclusion_of(f"I look.\n\n{right}", "untagged", right) == right
    assert conclusion_of("That.", "untagged", right) == "That."


def test_scenes_ask_what_a_trace_can_help_with_and_what_it_cannot():
    assert {"more", "count", "colour"} < set(SCENE_KINDS) and "describe" not in SCENE_KINDS and len(SCENE_KINDS) == 7


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_study_that_is_stopped_leaves_nothing_running_and_goes_on(tmp_path, number):
    """The whole program on scenes, two trainings at once, stopped in the middle of them and started again."""
    flags = ["--scenes", "60", "--scene_questions", "14", "--study_dir", str(tmp_path / "study"), "--jobs", "2"]
    flags += ["--arms", "[full,conclusion]", "--seeds", "[1,2]", "--model.finetune_max_steps", "30"]
    command = [sys.executable, "scripts/study.py", *flags]
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert any("step 5/30" in line for line in program.stdout)
    os.kill(program.pid, number)
    program.communicate(timeout=60)
    assert program.returncode == (75 if number == signal.SIGTERM else 130)
    assert str(tmp_path) not in subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True).stdout
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "resuming the run" in again.stdout and "Nothing can be said" not in again.stdout
    assert (tmp_path / "study" / PAGE).is_file()
