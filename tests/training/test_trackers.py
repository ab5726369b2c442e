"""Trackers of other makers, which may not be installed."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest

from cobra.training.metrics import Metrics
from cobra.util.errors import UserError

HPARAMS = {"seed": 7, "model": {"model_id": "cobra-tiny"}}


def metrics(tmp_path, *trackers, stage="finetune", **options):
    return Metrics(trackers, "run-1", tmp_path, HPARAMS, stage, **options)


def commit(one, step, loss=2.0):
    return one.commit(step, loss, 1e-3, 0.5, 4, 2)


@pytest.fixture
def calls(monkeypatch) -> list:
    """What a stand-in for wandb is called with; its runs are named in turn."""
    made = []

    def init(**options):
        made.append(("init", options))
        return SimpleNamespace(
            id=options["id"] or f"id-{len(made)}",
            log=lambda values, step: made.append(("log", step, values["Align/Loss (Raw)"])),
            finish=lambda: made.append(("finish",)),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return made


@pytest.mark.parametrize(("tracker", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_tracker_that_is_not_installed_names_the_extra(tmp_path, monkeypatch, tracker, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"tracker {tracker} needs .* pip install 'cobra-vlm\[tracking\]'"):
        metrics(tmp_path, tracker)


def test_wandb_gets_its_project_and_every_step(tmp_path, calls):
    one = metrics(tmp_path, "wandb", stage="align", wandb_project="mine", wandb_entity="we")
    commit(one, 1)
    one.finalize()
    options = {
        "name": "run-1",
        "dir": str(tmp_path),
        "config": HPARAMS,
        "project": "mine",
        "entity": "we",
        "group": "align",
        "id": None,
        "resume": None,
    }
    assert calls == [("init", options), ("log", 1, 2.0), ("finish",)]


def test_wandb_goes_on_with_the_same_run(tmp_path, calls):
    for resumed_step in (None, 3, 5):
        metrics(tmp_path, "wandb", stage="align", resumed_step=resumed_step)
    assert [(options["id"], options["resume"]) for _, options in calls] == [
        (None, None),
        ("id-1", "allow"),
        ("id-1", "allow"),
    ]
    # A new run in the same folder is another one there.
    metrics(tmp_path, "wandb", stage="align")
    metrics(tmp_path, "wandb", stage="align", resumed_step=1)
    assert [options["id"] for _, options in calls[3:]] == [None, "id-4"]


def test_trackers_stand_side_by_side(tmp_path, calls):
    one = metrics(tmp_path, "jsonl", "wandb", stage="align")
    commit(one, 1)
    one.finalize()
    [line] = (tmp_path / "run-1.jsonl").read_text().splitlines()
    assert json.loads(line)["Align/Loss (Raw)"] == 2.0 and calls[1:] == [("log", 1, 2.0), ("finish",)]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_itself_takes_a_run_up_again(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    identities = []
    for resumed_step in (None, 1):
        one = metrics(tmp_path, "wandb", resumed_step=resumed_step)
        commit(one, 1 + (resumed_step or 0))
        identities.append(one._trackers[0]._run.id)
        one.finalize()
    assert identities[0] == identities[1]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_drops_the_steps_that_are_done_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed_step, steps in ((None, range(1, 6)), (3, range(4, 7))):
        one = metrics(tmp_path, "tensorboard", resumed_step=resumed_step)
        for step in steps:
            commit(one, step, float(step + 10 * (resumed_step or 0)))
        one.finalize()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("Finetune/Loss (Raw)")]
    assert found == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 34.0), (5, 35.0), (6, 36.0)]
