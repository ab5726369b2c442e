"""Saving what a run needs to go on: bitwise back, in the background, whole or not at all, the newest few."""

import json
import shutil

import pytest
import torch
from test_step import CPU, ROWS, collate, make_strategy

from cobra.models.run_folder import LATEST
from cobra.training import run_state
from cobra.training.run_state import RunSaver, RunState, clear_unfinished, read_state, states
from cobra.util.errors import UserError


def trained(steps=3):
    strategy = make_strategy()
    for _ in range(steps):
        strategy.train_step([collate(*ROWS)], 1e-3)
    return strategy


def saver_of(strategy, folder, keep=2):
    return RunSaver(folder, CPU, strategy.vlm, strategy.optimizer, keep)


def everything(strategy):
    tensors = {name: value.clone() for name, value in strategy.vlm.named_parameters()}
    for number, state in enumerate(strategy.optimizer.state.values()):
        tensors |= {f"{number} {name}": value.clone() for name, value in state.items()}
    return tensors


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_state_comes_back_bitwise_and_training_goes_on_bitwise(tmp_path):
    strategy = trained()
    saver = saver_of(strategy, tmp_path)
    expected = everything(strategy)
    saver.begin(RunState(3, 100, 1, 2.5, {"seed": 7}))
    # What happens meanwhile must not get into the state that is being written.
    uninterrupted = [strategy.train_step([collate(*ROWS)], 1e-3) for _ in range(2)]
    assert saver.finish() is None
    (path,) = states(tmp_path / "resume")
    fresh = make_strategy()
    assert saver_of(fresh, tmp_path).restore(path) == RunState(3, 100, 1, 2.5, {"seed": 7})
    assert_equal(everything(fresh), expected)
    assert [fresh.train_step([collate(*ROWS)], 1e-3) for _ in range(2)] == uninterrupted
    assert_equal(everything(fresh), everything(strategy))


def test_nothing_is_warned_of_when_one_process_saves_and_restores(tmp_path, recwarn):
    strategy = trained()
    saver = saver_of(strategy, tmp_path)
    saver.begin(RunState(3, 100, 0))
    assert saver.finish() is None
    saver.restore(tmp_path / "resume" / "step-000003")
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.fault("A12")
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"step": -3}, "its step is -3 and must be a whole number"),
        ({"step": [3]}, "its step is"),
        ({"step": True}, "its step is True"),
        ({"step": 3.0}, "its step is 3.0"),
        ({"step": 10**12}, "its step is 1,000,000,000,000, which is not that of its name"),
        ({"tokens": None}, "its tokens is None"),
        ({"skipped": 4}, "4 of its 3 steps are skipped"),
        ({"skipped_in_a_row": 1}, "0 of its 3 steps are skipped, 1 in a row"),
        ({"best_validation_loss": float("nan")}, "its best_validation_loss is nan"),
        ({"best_validation_loss": "low"}, "its best_validation_loss is 'low'"),
        ({"setting": []}, "its setting is"),
        ({"unknown": 1}, "unexpected keyword"),
    ],
)
def test_state_of_impossible_values_is_refused(tmp_path, values, told):
    path = tmp_path / "step-000003"
    path.mkdir()
    (path / "state.json").write_text(json.dumps({"step": 3, "tokens": 100, "skipped": 0} | values))
    with pytest.raises(UserError, match=f"step-000003 cannot be read: .*{told}.*Delete that folder"):
        read_state(path)


@pytest.mark.fault("A12")
def test_state_that_is_no_object_is_refused(tmp_path):
    path = tmp_path / "step-000003"
    path.mkdir()
    for text in ("[3]", "3", "null", "", "[" * 100_000):
        (path / "state.json").write_text(text)
        with pytest.raises(UserError, match="cannot be read"):
            read_state(path)


@pytest.mark.fault("A12")
def test_states_are_in_the_order_of_their_steps_and_other_folders_are_passed_over(tmp_path):
    for name in ("step-1000000", "step-999999", "step-of-mine", "step-000001.tmp", "step-"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    assert [path.name for path in states(tmp_path)] == ["step-999999", "step-1000000"]


def test_the_newest_few_are_kept(tmp_path):
    strategy = trained(1)
    saver = saver_of(strategy, tmp_path)
    for step in (1, 2, 3, 10):
        saver.begin(RunState(step, 0, 0))
    saver.finish()
    assert [path.name for path in states(tmp_path / "resume")] == ["step-000003", "step-000010"]
    assert len(list((tmp_path / "resume").iterdir())) == 2


def test_poll_completes_what_has_been_written(tmp_path):
    strategy = trained(1)
    saver = saver_of(strategy, tmp_path)
    assert saver.poll() is None
    saver.begin(RunState(1, 0, 0))
    while not states(tmp_path / "resume"):
        assert saver.poll() is None


def test_a_save_that_fails_keeps_the_last_whole_one(tmp_path, monkeypatch):
    strategy = trained(1)
    saver = saver_of(strategy, tmp_path)
    saver.begin(RunState(1, 0, 0))
    saver.finish()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.distributed.checkpoint.FileSystemWriter, "write_data", fail)
    saver.begin(RunState(2, 0, 0))
    problem = saver.finish()
    assert "No space left on device" in problem
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["step-000001"]
    monkeypatch.undo()
    saver.begin(RunState(3, 0, 0))
    assert saver.finish() is None


def test_what_is_half_written_is_not_a_state_and_is_cleared(tmp_path):
    strategy = trained(1)
    saver = saver_of(strategy, tmp_path)
    saver.begin(RunState(1, 0, 0))
    saver.finish()
    folder = tmp_path / "resume"
    shutil.copytree(folder / "step-000001", folder / "step-000002.tmp")
    (folder / "step-000003").mkdir()
    assert [path.name for path in states(folder)] == ["step-000001"]
    (tmp_path / LATEST).parent.mkdir()
    leftover = tmp_path / LATEST.parent / f".{LATEST.name}.abc.tmp"
    for path in (tmp_path / LATEST, leftover, tmp_path / ".config.json.abc.tmp"):
        path.touch()
    clear_unfinished(tmp_path)
    assert not [*tmp_path.rglob("*.tmp")] and [path.name for path in states(folder)] == ["step-000001"]
    assert (tmp_path / LATEST).exists()


@pytest.mark.parametrize("name", [".metadata", "state.json", "__0_0.distcp"])
def test_damaged_state_is_named(tmp_path, name):
    strategy = trained(1)
    saver = saver_of(strategy, tmp_path)
    saver.begin(RunState(1, 0, 0))
    saver.finish()
    path = tmp_path / "resume" / "step-000001"
    (path / name).write_bytes((path / name).read_bytes()[:20])
    with pytest.raises(UserError, match=r"step-000001 cannot be read.*Delete that folder"):
        saver.restore(path)
    assert run_state.RESUME == "resume"


@pytest.mark.fault("A3")
def test_a_state_is_saved_in_the_place_of_that_of_the_same_step(tmp_path):
    strategy = trained(1)
    saver = saver_of(strategy, tmp_path)
    for unreported in ({"loss": 1.0}, None):
        saver.begin(RunState(1, 0, 0, unreported=unreported))
        assert saver.finish() is None
        assert [path.name for path in (tmp_path / "resume").iterdir()] == ["step-000001"]
        assert read_state(tmp_path / "resume" / "step-000001").unreported == unreported


@pytest.mark.fault("B1")
def test_links_in_place_of_states_are_deleted_and_what_they_lead_to_stays(tmp_path):
    saver = saver_of(trained(1), tmp_path, keep=1)
    saver.begin(RunState(1, 0, 0))
    saver.finish()
    folder, elsewhere = tmp_path / "resume", tmp_path / "elsewhere"
    (folder / "step-000001").rename(elsewhere)
    (folder / "step-000001").symlink_to(elsewhere)
    (folder / "step-000002.tmp").symlink_to(elsewhere)
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    saver.begin(RunState(2, 0, 0))
    assert saver.finish() is None
    assert [path.name for path in folder.iterdir()] == ["step-000002"]
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before


def test_an_old_state_that_cannot_be_deleted_does_not_fail_the_save(tmp_path, monkeypatch):
    saver = saver_of(trained(1), tmp_path, keep=1)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(run_state, "_set_aside", refuse)
    for step in (1, 2):
        saver.begin(RunState(step, 0, 0))
        assert saver.finish() is None
    assert len(states(tmp_path / "resume")) == 2


@pytest.mark.fault("A12")
def test_a_state_of_unbounded_size_is_not_read(tmp_path):
    path = tmp_path / "step-000003"
    path.mkdir()
    with (path / "state.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="has more than 16,777,216 bytes"):
        read_state(path)


def test_the_states_of_a_finished_run_are_deleted_also_through_a_link(tmp_path):
    saver = saver_of(trained(1), tmp_path)
    (tmp_path / "big-disk").mkdir()
    (tmp_path / "resume").symlink_to(tmp_path / "big-disk")
    saver.begin(RunState(1, 0, 0))
    assert saver.finish() is None
    run_state.delete_states(tmp_path)
    assert not [*(tmp_path / "big-disk").iterdir()]


@pytest.mark.fault("A13")
def test_an_interrupt_while_a_state_is_read_blames_no_file(tmp_path, monkeypatch):
    saver = saver_of(trained(1), tmp_path)
    saver.begin(RunState(1, 0, 0))
    saver.finish()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_state.StateReader, "read_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        saver.restore(tmp_path / "resume" / "step-000001")
