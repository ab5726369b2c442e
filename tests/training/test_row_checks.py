"""An image that is missing is told before the first step; one that breaks off is met late, and the run goes on."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scratch import scratch_run

from cobra.preprocessing.datasets import FinetuneDataset
from cobra.training.loop import TrainingLoop
from cobra.training.pretrain import PretrainConfig, pretrain
from cobra.training.run_state import RESUME, states
from cobra.util.cli import parse
from cobra.util.errors import UserError

pytestmark = pytest.mark.fault("F10")

ROOT = Path(__file__).parents[2]
MISSING_LATE = ROOT / "tests" / "faults" / "missing-late"
ROWS = 8


def arguments(folder, *more):
    sizes = ("--model.finetune_epochs", "1", "--model.finetune_global_batch_size", "2")
    return scratch_run(folder, "a", *sizes, "--model.finetune_per_device_batch_size", "1", *more)


def train(folder, *more):
    return pretrain(parse(PretrainConfig, arguments(folder, *more)))


def losses(folder):
    lines = (folder / "runs" / "a" / "a.jsonl").read_text().splitlines()
    return {entry["Finetune/Step"]: entry["Finetune/Loss (Raw)"] for entry in map(json.loads, lines)}


@pytest.fixture
def order(folder, monkeypatch):
    """The rows in the order of a run, two a step, and its losses by step, with nothing bad."""
    read = []
    whole = FinetuneDataset.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(FinetuneDataset, "__getitem__", lambda self, row: read.append(row) or whole(self, row))
        train(folder)
    expected = losses(folder)
    shutil.rmtree(folder / "runs")
    # Some are read before the first step, to be compared when a run goes on.
    return read[-ROWS:], expected


def test_a_missing_image_is_told_before_the_first_step(tmp_path):
    shutil.copytree(MISSING_LATE, tmp_path / "data")
    data = tmp_path / "data"
    with pytest.raises(UserError, match=r"1 of 40 rows of .*rows.json \(id 'r17': 17.png\) name an image") as error:
        train(data)
    assert "take the rows out" in str(error.value) and "--dataset.on_bad_image skip" in str(error.value)
    assert not (data / "runs" / "a" / "config.json").exists()
    # As the message says, and the same command.
    rows = json.loads((data / "rows.json").read_text())
    (data / "rows.json").write_text(json.dumps([row for row in rows if row["id"] != "r17"]))
    assert (train(data, "--model.finetune_max_steps", "2") / "finished.json").is_file()


def test_missing_images_are_counted_where_they_are_skipped(folder, capsys):
    (folder / "images" / "3.png").unlink()
    train(folder, "--dataset.on_bad_image", "skip")
    assert "warning: 1 of 8 rows of" in capsys.readouterr().out


@pytest.mark.parametrize("remedy", ["put it back", "skip"])
@pytest.mark.parametrize("damage", ["cut", "gone after the start"])
def test_a_bad_image_that_is_met_late_costs_no_step(folder, order, capsys, monkeypatch, remedy, damage):
    read, expected = order
    path = folder / "images" / f"{read[4]}.png"
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        monkeypatch.setattr("cobra.training.pretrain.tell_markers", lambda *_: path.unlink(missing_ok=True))
    with pytest.raises(
        UserError, match=rf"\(id {read[4]}\).*--dataset.on_bad_image skip\. The state after step 2 is"
    ) as error:
        train(folder)
    assert "take the row out" not in str(error.value)
    assert [state.name for state in states(folder / "runs" / "a" / RESUME)][-1] == "step-000002"
    if damage != "cut" and remedy == "skip":
        # It is missed at once, now, and the run goes on all the same.
        with pytest.raises(UserError, match="1 of 8 rows") as error:
            train(folder)
        assert "take the rows out" not in str(error.value)
    if remedy == "put it back":
        monkeypatch.setattr("cobra.training.pretrain.tell_markers", lambda *_: None)
        path.write_bytes(content)
        train(folder)
        assert losses(folder) == expected
    else:
        train(folder, "--dataset.on_bad_image", "skip")
        found = losses(folder)
        assert found.keys() == expected.keys()
        assert [found[step] for step in (1, 2)] == [expected[step] for step in (1, 2)]
        assert "1 of 8 rows had a missing or unreadable image" in capsys.readouterr().out
    assert (folder / "runs" / "a" / "finished.json").is_file()


def test_a_bad_image_in_the_first_step_leaves_nothing_to_go_on_from(folder, order):
    path = folder / "images" / f"{order[0][0]}.png"
    content = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"it is empty\); .* No step was done since the start"):
        train(folder)
    assert states(folder / "runs" / "a" / RESUME) == []
    path.write_bytes(content)
    train(folder)
    assert losses(folder) == order[1]


def test_a_held_out_row_with_a_bad_image_ends_no_run(folder, capsys):
    rows = json.loads((folder / "rows.json").read_text())
    (folder / "held.json").write_text(json.dumps(rows[:2]))
    (folder / "rows.json").write_text(json.dumps(rows[2:]))
    (folder / "images" / "0.png").write_bytes(b"<html>")
    train(folder, "--dataset.holdout_components", "[held.json, images]", "--eval_samples", "1")
    output = capsys.readouterr()
    assert "a row is skipped: row 0 (id 0)" in output.err and "it is a web page" in output.err
    assert "held-out rows: loss" in output.out + output.err
    (folder / "images" / "0.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 rows of .*held.json \(id 0: 0.png\) name an image"):
        train(folder, "--dataset.holdout_components", "[held.json, images]", "--run_id", "b")


@pytest.mark.fault("F16")
def test_special_tokens_and_other_markers_are_told_and_can_be_taken_out_as_told(tmp_path, capsys):
    shutil.copytree(ROOT / "tests" / "faults" / "special-tokens", tmp_path / "data")
    data = tmp_path / "data"
    train(data, "--model.finetune_max_steps", "1")
    told = capsys.readouterr().out
    assert "the texts of 4 of 4 rows hold <|endoftext|> or <|padding|>" in told
    assert "the texts of 4 of 4 rows hold what other tools mark turns with" in told
    command = re.search(r"sed -i .*", told)
    subprocess.run(["bash", "-c", command[0]], check=True)
    assert "A red square.And a blue one." in (data / "rows.json").read_text()
    train(data, "--model.finetune_max_steps", "1", "--run_id", "b")
    assert "<|endoftext|>" not in capsys.readouterr().out


class TwoProcesses:
    """What a process sees that has good rows, beside one that has not."""

    device = torch.device("cpu")

    def max(self, value):
        return torch.ones_like(value)

    def gather(self, value):
        return [value, UserError("row 5 is bad")]


def test_a_process_with_good_rows_saves_too_and_says_what_the_other_has_met():
    done = []
    context = SimpleNamespace(saver=SimpleNamespace(folder="resume"), save_now=lambda: done.append("save"))
    loop = SimpleNamespace(world=TwoProcesses(), strategy=SimpleNamespace(global_step=3), context=context)
    with pytest.raises(UserError, match="row 5 is bad. The state after step 3 is saved in resume"):
        TrainingLoop._readable(loop, [{}], 0)
    assert done == ["save"]
    with pytest.raises(UserError, match="row 5 is bad. No step was done since the start"):
        TrainingLoop._readable(loop, [{}], 3)


@pytest.mark.slow
def test_of_several_processes_all_save_what_one_has_met(folder, order):
    path = folder / "images" / f"{order[0][5]}.png"
    content = path.read_bytes()
    path.write_bytes(content[:60])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["scripts/pretrain.py", *arguments(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode != 0 and f"(id {order[0][5]})" in ended.stderr, ended.stderr
    assert "The state after step 2 is saved" in ended.stderr
    path.write_bytes(content)
    train(folder)
    assert set(losses(folder)) == {1, 2, 3, 4}


@pytest.mark.fault("F2")
@pytest.mark.fault("F4")
def test_the_first_lines_count_images_and_what_teaches_nothing(folder, capsys):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Red."}]
    long = [{"from": "human", "value": "word " * 300}, turns[1]]
    rows = [
        {"id": 0, "image": "0.png", "conversations": turns},
        {"id": 1, "image": None, "conversations": turns, "system": "Answer in French."},
        {"id": 2, "image": ["1.png"], "conversations": long},
        {"id": 3, "image": "2.png", "conversations": turns, "model": "x"},
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    train(folder, "--model.llm_max_length", "200", "--model.finetune_max_steps", "1")
    out = capsys.readouterr().out
    assert "4 rows of custom (3 with an image, 1 of text only), stage finetune, in 1 process on cpu" in out
    assert "rows.json: 1 of 4 rows have `system`, which is not trained on" in out
    assert "rows.json: 1 of 4 rows teach nothing: their first question alone fills the 200 tokens" in out
