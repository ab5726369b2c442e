"""Trainings that are stopped: by a request to the study, or by themselves; stand-ins take the place of the program."""

import json
import os
import signal
import sys
import time
from dataclasses import asdict

import pytest

from cobra.models.run_folder import find_checkpoint
from cobra.study import cells
from cobra.study.cells import Trainings, cells_of
from cobra.study.exam import CONCLUSIONS, Score
from cobra.study.run import run_study
from cobra.training.preemption import Stopped, StopRequests
from cobra.util.errors import UserError
from cobra.util.files import sha256_file

# Trains until it is asked to stop, and then takes its time to save.
WILLING = """
import pathlib, signal, sys, time

def stop(*_):
    for part in range(20):
        print("saving part", part, flush=True)
        time.sleep(0.02)
    print("state saved", flush=True)
    pathlib.Path(sys.argv[1], "saved").write_text("")
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
while True:
    print("step 1/9", flush=True)
    time.sleep(0.02)
"""
# Is at the end of its own time; torchrun returns 1 for whatever its processes do.
LIMITED = """
import json, pathlib, sys
pathlib.Path(sys.argv[1], "stopped.json").write_text(json.dumps({"reason": "the time limit", "step": 3, "time": 2.0}))
sys.exit(1)
"""
FAILING = "raise SystemExit(2)"


@pytest.fixture
def program(config, tmp_path, monkeypatch):
    """Return what makes a program take the place of every training; it is given the run directory of the first cell."""
    run_dir = config.study_dir / "runs" / cells_of(config)[0].name
    run_dir.mkdir(parents=True)
    file = tmp_path / "program.py"

    def program(text):
        file.write_text(text)
        monkeypatch.setattr(cells, "program", lambda *_: [sys.executable, str(file), str(run_dir)])
        return run_dir

    return program


def test_a_request_lets_the_training_of_one_cell_save_itself(config, program):
    """With `--cell` the training runs in the main thread, where the request breaks in."""
    run_dir = program(WILLING)
    trainings = Trainings(config, lambda line: os.kill(os.getpid(), signal.SIGTERM))
    with StopRequests(), pytest.raises(Stopped) as stop:
        trainings.train(cells_of(config)[0], None)
    assert stop.value.exit_code == 75 and (run_dir / "saved").is_file()
    assert (config.study_dir / "logs" / f"{run_dir.name}.log").read_text().endswith("state saved\n")


def test_a_training_that_stops_by_itself_is_no_failed_one(config, program, capsys):
    run_dir = program(LIMITED)
    # That of an earlier start.
    (run_dir / "stopped.json").write_text(json.dumps({"reason": "SIGTERM", "step": 1, "time": 1.0}))
    with pytest.raises(Stopped) as stop:
        Trainings(config, print).train(cells_of(config)[0], None)
    assert (stop.value.reason, stop.value.exit_code) == ("the time limit", 75)
    assert f"{run_dir.name} was stopped by the time limit: the same command goes on" in capsys.readouterr().out


def test_a_study_ends_with_its_training_that_stops_by_itself(config, program):
    """Nothing else is begun, and no page is written without the arms that are not done."""
    program(LIMITED)
    score = Score({CONCLUSIONS: [0.0] * 21}, 9.0, 0.1, 1.0, sha256_file(find_checkpoint("cobra-tiny").path))
    (config.study_dir / "scores").mkdir()
    (config.study_dir / "scores" / "start.json").write_text(json.dumps(asdict(score)))
    with pytest.raises(Stopped):
        run_study(config)
    assert len(list((config.study_dir / "logs").iterdir())) == 1 and not list(config.study_dir.glob("study.*"))


def test_the_mark_of_an_earlier_stop_excuses_no_failure(config, program):
    run_dir = program(FAILING)
    (run_dir / "stopped.json").write_text(json.dumps({"reason": "SIGTERM", "step": 1, "time": 1.0}))
    with pytest.raises(UserError, match="ended with code 2"):
        Trainings(config, print).train(cells_of(config)[0], None)


def test_a_stopped_study_starts_no_further_training(config):
    trainings = Trainings(config, print)
    trainings.stop()
    begin = time.monotonic()
    with pytest.raises(UserError, match="ended with code 75"):
        trainings.train(cells_of(config)[0], None)
    assert time.monotonic() - begin < 1
