"""Runs that are interrupted and go on: the same rows, the same numbers, on the same or another number of processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_pretrain import ROOT, rows_dir, train_arguments  # noqa: F401 - a fixture
from training_run import ForkedStart

from cobra.models.checkpoint import read_checkpoint
from cobra.models.run_folder import LATEST

STEPS = ["--model.finetune_max_steps", "10", "--model.finetune_per_device_batch_size"]


def launch(arguments: list[str], processes: int = 1) -> subprocess.Popen:
    """Start a run in a process group of its own."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*start, "scripts/pretrain.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=200)
    return process.returncode, output


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / f"{run.name}.jsonl").read_text().splitlines()]


def raw_losses(run: Path) -> dict[int, float]:
    return {line["Finetune/Step"]: line["Finetune/Loss (Raw)"] for line in lines(run)}


@pytest.fixture(scope="module")
def whole(rows_dir, tmp_path_factory) -> Path:  # noqa: F811
    """Ten steps without an interruption, by one process."""
    root = tmp_path_factory.mktemp("whole")
    code, output = finish(launch(train_arguments(rows_dir, root, "whole", *STEPS, "2")))
    assert code == 0, output
    assert not (root / "whole" / "resume").exists()
    assert json.loads((root / "whole" / "finished.json").read_text()) == {"steps": 10, "skipped": 0}
    return root / "whole"


def stop_at(process, run: Path, step: int, number: int) -> None:
    """Send a signal once `step` has been logged."""
    deadline = time.monotonic() + 100
    log = run / f"{run.name}.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and len(log.read_text().splitlines()) >= step:
            os.killpg(process.pid, number)
            return
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_signal_saves_and_the_same_command_goes_on_bitwise(rows_dir, whole, tmp_path, number, code):  # noqa: F811
    arguments = train_arguments(rows_dir, tmp_path, "whole", *STEPS, "2")
    run = tmp_path / "whole"
    process = launch(arguments)
    stop_at(process, run, 3, number)
    stopped, output = finish(process)
    assert stopped == code, output
    assert "the state is saved" in output
    done = len(lines(run))
    assert 3 <= done < 10
    stopped, output = finish(launch(arguments))
    assert stopped == 0, output
    assert raw_losses(run) == raw_losses(whole)
    assert [line["Finetune/Step"] for line in lines(run)] == list(range(1, 11))
    for module, tensors in read_checkpoint(whole / LATEST).items():
        assert all(tensor.equal(read_checkpoint(run / LATEST)[module][name]) for name, tensor in tensors.items())


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(rows_dir, whole, tmp_path, before, after):  # noqa: F811
    arguments = train_arguments(rows_dir, tmp_path, "whole", *STEPS, "2")
    run = tmp_path / "whole"
    process = launch([*arguments, "--save_interval_steps", "4"], before)
    stop_at(process, run, 6, signal.SIGKILL)
    finish(process)
    code, output = finish(launch(arguments, after))
    assert code == 0, output
    assert raw_losses(run) == pytest.approx(raw_losses(whole), rel=1e-5)


def test_other_setting_is_refused(rows_dir, tmp_path):  # noqa: F811
    arguments = train_arguments(rows_dir, tmp_path, "run", *STEPS, "2")

    def start(record: str, *more: str) -> ForkedStart:
        return ForkedStart([*arguments, *more], 1, tmp_path / "records" / record)

    begun = start("begun", "--save_interval_steps", "2")
    while begun.is_running() and len(begun.steps()) < 4:
        time.sleep(0.005)
    begun.signal(signal.SIGTERM, [begun.first()])
    code, output = begun.end()
    assert code == 75 and "the state is saved" in output, output
    code, output = start("seed", "--seed", "8").end()
    assert code == 2 and "cannot go on with another setting; it was begun with seed 7 (now 8)" in output
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 7
    code, output = start("none", "--resume", "none").end()
    assert code == 2 and "would be overwritten" in output
    code, output = start("resumed", "--resume", str(tmp_path / "run")).end()
    assert code == 0, output
    code, output = start("finished").end()
    assert code == 2 and "is finished" in output


def test_time_limit(rows_dir, tmp_path):  # noqa: F811
    arguments = train_arguments(rows_dir, tmp_path, "run", "--model.finetune_max_steps", "100000")
    arguments += ["--model.finetune_per_device_batch_size", "2"]
    code, output = ForkedStart([*arguments, "--time_limit", "0.02"], 1, tmp_path / "record").end()
    assert code == 75 and "stopped by the time limit after step" in output, output
    assert (tmp_path / "run" / "resume").is_dir()
