"""Metrics of a run: Cobra's files, line by line, and trackers that may not be installed."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest

from cobra.training.metrics import Metrics, check_trackers
from cobra.util.errors import UserError

HPARAMS = {"seed": 7, "model": {"model_id": "cobra-tiny"}}


def metrics(tmp_path, *trackers, stage="finetune", **options):
    return Metrics(trackers, "run-1", tmp_path, HPARAMS, stage, **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("stage", "prefix"), [("align", "Align"), ("finetune", "Finetune"), ("full-finetune", "Full-Finetune")]
)
def test_cobras_files(tmp_path, stage, prefix):
    one = metrics(tmp_path, "jsonl", stage=stage)
    returned = one.commit(1, 2.5, 1e-3, 0.5, 40)
    one.finalize()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-1.jsonl", "run-metrics.jsonl"]
    assert lines(tmp_path / "run-metrics.jsonl") == [{"hparams": HPARAMS, "run_id": "run-1"}]
    assert lines(tmp_path / "run-1.jsonl") == [returned]
    names = ["Step", "Loss", "Loss (Raw)", "Learning Rate", "Step Time", "Gradient Norm", "Tokens"]
    assert list(returned) == [f"{prefix}/{name}" for name in names]
    values = dict(zip(names, returned.values(), strict=True))
    assert values.pop("Step Time") >= 0
    assert values == {
        "Step": 1,
        "Loss": 2.5,
        "Loss (Raw)": 2.5,
        "Learning Rate": 1e-3,
        "Gradient Norm": 0.5,
        "Tokens": 40,
    }


def test_every_line_is_on_disk_when_its_step_is_done(tmp_path):
    """A run that is killed keeps what it has done."""
    one = metrics(tmp_path, "jsonl")
    for step in (1, 2, 3):
        one.commit(step, 1.0, 1e-3, 0.5, 4)
        assert [line["Finetune/Step"] for line in lines(tmp_path / "run-1.jsonl")] == list(range(1, step + 1))


def test_loss_and_step_time_are_means_of_the_last_128(tmp_path, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock) ** 2))
    one = metrics(tmp_path)
    for step in range(1, 201):
        last = one.commit(step, float(step), 1e-3, 0.5, 4)
    assert last["Finetune/Loss"] == sum(range(73, 201)) / 128
    assert last["Finetune/Loss (Raw)"] == 200
    # The clock's squares are 2 n - 1 apart.
    assert last["Finetune/Step Time"] == sum(2 * step - 1 for step in range(73, 201)) / 128


def test_unknown_trackers_list_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="tracker mlflow, comet is unknown.*jsonl, wandb, tensorboard"):
        check_trackers(("jsonl", "mlflow", "comet"))
    with pytest.raises(UserError, match="mlflow"):
        metrics(tmp_path, "jsonl", "mlflow")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("tracker", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_tracker_that_is_not_installed_names_the_extra(tmp_path, monkeypatch, tracker, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"tracker {tracker} needs .* pip install 'cobra-vlm\[tracking\]'"):
        metrics(tmp_path, tracker)


def test_wandb_gets_its_project_and_every_step(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append(("log", step, values["Align/Loss (Raw)"])),
        finish=lambda: calls.append(("finish",)),
    )
    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(init=lambda **options: calls.append(("init", options)) or run)
    )
    one = metrics(tmp_path, "wandb", stage="align", wandb_project="mine", wandb_entity="we")
    one.commit(1, 2.0, 1e-3, 0.5, 4)
    one.finalize()
    options = {
        "name": "run-1",
        "dir": str(tmp_path),
        "config": HPARAMS,
        "project": "mine",
        "entity": "we",
        "group": "align",
    }
    assert calls == [("init", options), ("log", 1, 2.0), ("finish",)]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_writes_event_files(tmp_path):
    one = metrics(tmp_path, "tensorboard")
    one.commit(1, 2.0, 1e-3, 0.5, 4)
    one.finalize()
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_trackers_stand_side_by_side(tmp_path, monkeypatch):
    seen = []
    fake = SimpleNamespace(log=lambda values, step: seen.append(values), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: fake))
    one = metrics(tmp_path, "jsonl", "wandb")
    one.commit(1, 2.0, 1e-3, 0.5, 4)
    one.finalize()
    assert seen == lines(tmp_path / "run-1.jsonl")
