"""Metrics of a run: Cobra's files, line by line, going on after an interruption, and what speeds are taken of."""

import json
import math
import resource

import pytest
import torch

from cobra.training.metrics import Metrics, check_trackers
from cobra.util.errors import UserError

HPARAMS = {"seed": 7, "model": {"model_id": "cobra-tiny"}}
NAMES = ["Step", "Loss", "Loss (Raw)", "Learning Rate", "Step Time", "Gradient Norm", "Tokens"]
ADDED = ["Tokens/s", "Samples/s", "Memory (GB)"]


def metrics(tmp_path, *trackers, stage="finetune", **options):
    return Metrics(trackers, "run-1", tmp_path, HPARAMS, stage, **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def commit(one, step, loss=1.0, **more):
    return one.commit(step, loss, 1e-3, 0.5, 40, 8, **more)


@pytest.mark.parametrize(
    ("stage", "prefix"), [("align", "Align"), ("finetune", "Finetune"), ("full-finetune", "Full-Finetune")]
)
def test_cobras_files(tmp_path, stage, prefix):
    one = metrics(tmp_path, "jsonl", stage=stage)
    returned = commit(one, 1, 2.5, extra={"Validation Loss": 0.25})
    one.finalize()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-1.jsonl", "run-metrics.jsonl"]
    assert lines(tmp_path / "run-metrics.jsonl") == [{"hparams": HPARAMS, "run_id": "run-1"}]
    assert lines(tmp_path / "run-1.jsonl") == [returned]
    assert list(returned) == [f"{prefix}/{name}" for name in [*NAMES, *ADDED, "Validation Loss"]]
    values = {name.partition("/")[2]: value for name, value in returned.items()}
    assert all(values.pop(name) > 0 for name in ("Step Time", *ADDED))
    assert values == {
        "Step": 1,
        "Loss": 2.5,
        "Loss (Raw)": 2.5,
        "Learning Rate": 1e-3,
        "Gradient Norm": 0.5,
        "Tokens": 40,
        "Validation Loss": 0.25,
    }


def test_every_line_is_on_disk_when_its_step_is_done(tmp_path):
    """A run that is killed keeps what it has done."""
    one = metrics(tmp_path, "jsonl")
    for step in (1, 2, 3):
        commit(one, step)
        assert [line["Finetune/Step"] for line in lines(tmp_path / "run-1.jsonl")] == list(range(1, step + 1))


def test_loss_and_step_time_are_means_of_the_last_128(tmp_path, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock) ** 2))
    one = metrics(tmp_path)
    for step in range(1, 201):
        last = commit(one, step, float(step))
    assert last["Finetune/Loss"] == sum(range(73, 201)) / 128
    assert last["Finetune/Loss (Raw)"] == 200
    # The clock's squares are 2 n - 1 apart.
    assert last["Finetune/Step Time"] == sum(2 * step - 1 for step in range(73, 201)) / 128


def test_speeds_are_of_the_time_that_trains(tmp_path, monkeypatch):
    clock = iter([0.0, 2.0, 4.0, 100.0, 102.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    one = metrics(tmp_path, peak_flops=1e12)
    assert one.commit(1, 1.0, 1e-3, 0.5, 40, 8, flops=5e11)["Finetune/MFU"] == 0.25
    # The clock is stopped at 4 s, and the step is committed at 100 s.
    one.stop_clock()
    second = one.commit(2, 1.0, 1e-3, 0.5, 20, 8, flops=5e11)
    assert (second["Finetune/Tokens/s"], second["Finetune/Samples/s"], second["Finetune/MFU"]) == (15.0, 4.0, 0.25)
    assert one.commit(3, 1.0, 1e-3, 0.5, 60, 2)["Finetune/Samples/s"] == 3.0


def test_utilisation_is_only_told_where_the_peak_is_known(tmp_path):
    assert "Finetune/MFU" not in commit(metrics(tmp_path), 1)


def test_memory_is_the_most_that_was_resident(tmp_path):
    one = metrics(tmp_path)
    before = commit(one, 1)["Finetune/Memory (GB)"]
    # More than what is resident already, also where another test has taken much and given it back.
    block = torch.ones(int(1.3e9 * before / 4) + 100_000_000)
    after = commit(one, 2)["Finetune/Memory (GB)"]
    assert 0.05 < before < after < 60
    assert after >= block.nbytes / 1e9


def test_memory_of_a_gpu_is_the_peak_since_the_last_line(tmp_path, monkeypatch):
    peaks = iter([9_000_000_000, 3_000_000_000, 2_000_000_000])
    resets = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: resets.append(None))
    one = metrics(tmp_path)
    # What building the model has taken does not count.
    assert len(resets) == 1
    assert [commit(one, step)["Finetune/Memory (GB)"] for step in (1, 2)] == [3.0, 2.0]
    assert len(resets) == 3


def test_a_skipped_step_is_null_and_stays_out_of_the_mean(tmp_path):
    one = metrics(tmp_path, "jsonl")
    for step, (loss, norm) in enumerate([(math.nan, 1.0), (2.0, 1.0), (math.inf, math.nan), (4.0, 1.0)], 1):
        one.commit(step, loss, 1e-3, norm, 40, 8, {"Skipped": step // 3})
    text = (tmp_path / "run-1.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    written = lines(tmp_path / "run-1.jsonl")
    assert [line["Finetune/Loss (Raw)"] for line in written] == [None, 2.0, None, 4.0]
    assert [line["Finetune/Loss"] for line in written] == [None, 2.0, 2.0, 3.0]
    assert [line["Finetune/Gradient Norm"] for line in written] == [1.0, 1.0, None, 1.0]
    assert [line["Finetune/Skipped"] for line in written] == [0, 0, 1, 1]


@pytest.mark.parametrize("torn", ["", '{"Finetune/Step": 6, "Finetu', '{"Finetune/Step": 7}'])
def test_a_run_goes_on_in_its_own_files(tmp_path, torn):
    whole = metrics(tmp_path / "..", "jsonl")
    losses = [8.0, 4.0, math.nan, 2.0, 16.0, 1.0, 32.0]
    expected = [commit(whole, step, loss)["Finetune/Loss"] for step, loss in enumerate(losses, 1)]
    first = metrics(tmp_path, "jsonl")
    for step, loss in enumerate(losses[:5], 1):
        commit(first, step, loss)
    with (tmp_path / "run-1.jsonl").open("a") as file:
        file.write(torn)
    (tmp_path / "run-metrics.jsonl").write_text("kept as it is")
    second = metrics(tmp_path, "jsonl", resumed_step=4)
    for step, loss in enumerate(losses[4:], 5):
        commit(second, step, loss)
    written = lines(tmp_path / "run-1.jsonl")
    assert [line["Finetune/Step"] for line in written] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["Finetune/Loss"] for line in written] == expected
    assert (tmp_path / "run-metrics.jsonl").read_text() == "kept as it is"


def test_a_new_run_replaces_the_files_of_one_that_came_to_nothing(tmp_path):
    commit(metrics(tmp_path, "jsonl"), 1)
    (tmp_path / "run-metrics.jsonl").write_text("old")
    one = metrics(tmp_path, "jsonl")
    assert (tmp_path / "run-1.jsonl").read_bytes() == b""
    assert commit(one, 1, 3.0)["Finetune/Loss"] == 3.0
    assert lines(tmp_path / "run-metrics.jsonl") == [{"hparams": HPARAMS, "run_id": "run-1"}]


def test_a_tracker_that_comes_later_makes_its_files(tmp_path):
    one = metrics(tmp_path, "jsonl", resumed_step=40)
    commit(one, 41)
    assert lines(tmp_path / "run-metrics.jsonl") == [{"hparams": HPARAMS, "run_id": "run-1"}]
    assert [line["Finetune/Step"] for line in lines(tmp_path / "run-1.jsonl")] == [41]


def test_a_full_disk_costs_lines_and_not_the_run(tmp_path, capsys):
    one = metrics(tmp_path, "jsonl")
    commit(one, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "run-1.jsonl").stat().st_size + 10, before[1]))
    try:
        commit(one, 2)
        assert commit(one, 3, 4.0)["Finetune/Loss"] == 2.0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    commit(one, 4)
    assert [line["Finetune/Step"] for line in lines(tmp_path / "run-1.jsonl")] == [1, 4]
    assert capsys.readouterr().err.count("warning: the metrics of step") == 1


def test_unknown_trackers_list_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="tracker .mlflow., .comet. is unknown.*jsonl, wandb, tensorboard"):
        check_trackers(("jsonl", "mlflow", "comet"))
    with pytest.raises(UserError, match="mlflow"):
        metrics(tmp_path, "jsonl", "mlflow")
    assert list(tmp_path.iterdir()) == []
