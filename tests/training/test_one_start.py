"""Starts that meet in one run directory, disks that take nothing, and how many checkpoints stay."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from lock_holder import start_holder
from small_disk import small_disk
from test_loop import open_loop, rows_with_nan, trainer
from test_matrix import Recorder
from test_pretrain import rows_dir, train_arguments  # noqa: F401 - a fixture
from training_run import ForkedStart

from cobra.models.checkpoint import read_checkpoint
from cobra.training.config import Hyperparameters, PretrainConfig
from cobra.training.preemption import Stopped
from cobra.training.pretrain import pretrain
from cobra.training.schedule import plan_steps
from cobra.util.cli import parse
from cobra.util.errors import UserError


def arguments(rows_dir, root, *more, steps=3):  # noqa: F811
    sizes = ["--model.finetune_per_device_batch_size", "2", "--model.finetune_max_steps", str(steps)]
    return train_arguments(rows_dir, root, "run", *sizes, *more)


@pytest.mark.fault("A7")
def test_a_second_start_is_refused_and_one_after_a_kill_goes_on(rows_dir, tmp_path):  # noqa: F811
    begun = ForkedStart(arguments(rows_dir, tmp_path, "--save_interval_steps", "1", steps=100_000), 1, tmp_path / "a")
    run = tmp_path / "run"
    try:
        deadline = time.monotonic() + 120
        while not list(run.glob("resume/step-*[0-9]")) and time.monotonic() < deadline and begun.is_running():
            time.sleep(0.02)
        config = parse(PretrainConfig, arguments(rows_dir, tmp_path, steps=100_000))
        with pytest.raises(UserError, match=rf"another start trains in {run} already: process {begun.pids()[0]} on "):
            pretrain(config)
        assert begun.is_running()
    finally:
        begun.kill()
        begun.end()
    lines = (run / "run.jsonl").read_text().splitlines()
    assert [json.loads(line)["Finetune/Step"] for line in lines] == list(range(1, len(lines) + 1))
    config = parse(PretrainConfig, arguments(rows_dir, tmp_path, "--time_limit", "0.0001", steps=100_000))
    with pytest.raises(Stopped, match="the time limit"):
        pretrain(config)
    assert not (run / "lock").exists()


@pytest.mark.fault("A7")
def test_all_processes_of_a_second_start_end_and_one_says_why(rows_dir, tmp_path):  # noqa: F811
    holder = start_holder(tmp_path / "run")
    try:
        second = ForkedStart(arguments(rows_dir, tmp_path), 2, tmp_path / "record")
        code, output = second.end()
        assert [process.exitcode for process in second._processes] == [2, 2] and code == 2
        assert output.count("error") == 1
        assert f"error: another start trains in {tmp_path / 'run'} already: process {holder.pid} on " in output
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()


@pytest.mark.fault("A7")
def test_a_plan_needs_no_lock(rows_dir, tmp_path):  # noqa: F811
    holder = start_holder(tmp_path / "run")
    try:
        pretrain(parse(PretrainConfig, arguments(rows_dir, tmp_path, "--dry_run", "true")))
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.fault("A10")
@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_run_directory_that_takes_nothing_is_told_at_the_start(rows_dir, tmp_path, state):  # noqa: F811
    with small_disk(tmp_path / "disk", 400) as disk:
        if state == "full":
            disk.fill()
        else:
            subprocess.run(["mount", "-o", "remount,ro", disk.folder], check=True)
        reason = {"full": "No space left on device", "read-only": "Read-only file system"}[state]
        with pytest.raises(UserError, match=rf"disk/run\S* cannot be used \({reason}\): .*what is done is kept"):
            pretrain(parse(PretrainConfig, arguments(rows_dir, disk.folder)))
        assert not (disk.folder / "run").exists()


@pytest.mark.fault("A8")
def test_another_start_is_refused_and_what_the_run_was_made_of_stays(rows_dir, tmp_path):  # noqa: F811
    limit = ["--time_limit", "0.0001", "--pretrained_checkpoint"]
    with pytest.raises(Stopped, match="the time limit"):
        pretrain(parse(PretrainConfig, arguments(rows_dir, tmp_path, *limit, "cobra-tiny")))
    run = tmp_path / "run"
    before = (run / "provenance.json").read_bytes()
    from safetensors.torch import load_file, save_file

    from cobra.models.run_folder import find_checkpoint

    weights = load_file(find_checkpoint("cobra-tiny").path)
    save_file(weights, tmp_path / "same.safetensors")
    name = "projector.projector.0.weight"
    weights[name] = weights[name] * 2
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="other weights to start from"):
        pretrain(parse(PretrainConfig, arguments(rows_dir, tmp_path, *limit, str(tmp_path / "other.safetensors"))))
    assert (run / "provenance.json").read_bytes() == before
    pretrain(parse(PretrainConfig, arguments(rows_dir, tmp_path, *limit[2:], str(tmp_path / "same.safetensors"))))
    record = json.loads((run / "provenance.json").read_text())
    assert record["weights"] == json.loads(before)["weights"] and len(record["resumed"]) == 1


def epochs(folder: Path, steps: int, **options) -> list[str]:
    """Train in epochs of one step; return the names of the checkpoints."""
    rows = rows_with_nan()
    loop = open_loop(trainer(steps=steps), type(rows)(rows[:4]), folder, Recorder(), **options)
    assert (loop.plan.batches_per_epoch, loop.plan.total_steps) == (1, steps)
    loop.run()
    return sorted(path.name[:11] for path in (folder / "checkpoints").iterdir())


@pytest.mark.fault("A11")
def test_epochs_of_one_step_do_not_fill_a_disk(tmp_path):
    names = epochs(tmp_path, 11, keep_epochs=3)
    assert names == ["latest-chec", "step-000008", "step-000010", "step-000011"]
    assert read_checkpoint(tmp_path / "checkpoints" / "latest-checkpoint.pt")


@pytest.mark.fault("A11")
@pytest.mark.parametrize(("steps", "batches"), [(1, 1), (20, 1), (7, 3), (100, 9), (101, 10), (1000, 1), (10, 20)])
def test_a_run_writes_ten_checkpoints_of_epochs_at_most(steps, batches):
    plan = plan_steps(Hyperparameters(1, steps, 4, 4, 1e-3, 0.1, 1.0, "linear-warmup+cosine-decay", 0.03), 1, batches)
    written = [step for step in range(1, steps + 1) if plan.is_milestone(step)]
    assert len(written) == plan.milestones <= 10 and written[-1] == steps
    if plan.epochs <= 10:
        assert set(range(batches, steps + 1, batches)) <= set(written)
