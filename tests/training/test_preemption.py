"""Requests to stop: who takes them, when, how much time there is, and what is done then."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from test_loop import CPU, Rows, open_loop, rows_with_nan, train, trainer
from test_matrix import Recorder
from test_pretrain import rows_dir, train_arguments  # noqa: F401 - a fixture

from cobra.models.checkpoint import read_checkpoint
from cobra.training.config import PretrainConfig
from cobra.training.preemption import Stopped, StopRequests, grace_seconds, job_end
from cobra.training.pretrain import pretrain
from cobra.training.run_directory import STOPPED, describe_stop
from cobra.training.run_state import RunSaver, read_state, states
from cobra.util.cli import parse
from cobra.util.errors import UserError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "some"}


@pytest.fixture(autouse=True)
def interrupts():
    """Take interrupts, which a shell ignores for what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.fault("A2")
@pytest.mark.parametrize(
    ("flags", "environment", "seconds"),
    [
        ([], {}, None),
        (["--shutdown-timeout", "110"], {}, None),
        ([], TORCHRUN, 30.0),
        ([], TORCHRUN | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "90"}, 90.0),
        (["--shutdown-timeout", "110"], TORCHRUN | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "90"}, 110.0),
        (["--shutdown_timeout=45"], TORCHRUN, 45.0),
    ],
)
def test_the_time_that_torchrun_grants_is_known(flags, environment, seconds):
    program = [sys.executable, "-c", "print(flush=True); input()", *flags]
    parent = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        # Until then its command line may still be this process's.
        parent.stdout.readline()
        assert grace_seconds(environment, parent.pid) == seconds
    finally:
        parent.communicate(b"\n")


@pytest.mark.fault("A2")
def test_the_end_of_a_job_is_known():
    assert job_end({}) is None and job_end({"SLURM_JOB_END_TIME": "1764300000"}) == 1764300000.0
    with pytest.raises(UserError, match="SLURM_JOB_END_TIME is 'soon'"):
        job_end({"SLURM_JOB_END_TIME": "soon"})


@pytest.mark.fault("A2")
def test_a_run_stops_while_there_is_time_before_the_end_of_its_job():
    stop = StopRequests(job_ends=time.time() + 100)
    assert stop.agreed(CPU, reserve=50) == (None, False)
    assert stop.agreed(CPU, reserve=150) == ("the end of the job's time", False)
    assert 90 < stop.seconds_left() < 100
    # Of a shell that has outlived its job.
    assert StopRequests(job_ends=time.time() - 100).agreed(CPU, reserve=150) == (None, False)


@pytest.fixture
def heeded():
    """Heed SIGHUP, which nohup has tests ignore."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_request_is_taken_at_once_while_a_run_starts_and_between_steps_when_it_trains(number):
    with StopRequests() as stop:
        with pytest.raises(Stopped) as stopped:
            signal.raise_signal(number)
        assert stopped.value.step is None and stopped.value.saved
    with StopRequests() as stop:
        stop.wait_for_steps()
        assert not stop.is_asked
        signal.raise_signal(number)
        assert stop.is_asked and stop.agreed(CPU)[0] == stopped.value.reason


@pytest.fixture
def interrupted(rows_dir, tmp_path, monkeypatch):  # noqa: F811
    """Start a run that is sent SIGTERM where a function is called; return how it was stopped."""
    more = ("--model.finetune_max_steps", "3", "--model.finetune_per_device_batch_size", "4")
    config = parse(PretrainConfig, train_arguments(rows_dir, tmp_path, "run", *more))

    def start(where: str) -> tuple[Stopped, Path]:
        owner, _, name = where.rpartition(".")
        function = resolve_name(where)

        def asked(*values, **named):
            signal.raise_signal(signal.SIGTERM)
            return function(*values, **named)

        with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
            patch.setattr(resolve_name(owner), name, asked)
            pretrain(config)
        return stopped.value, tmp_path / "run"

    return start


@pytest.mark.fault("A1")
def test_a_request_while_a_state_is_read_blames_no_file(interrupted, capsys):
    stopped, run = interrupted("cobra.training.strategy.TrainStrategy.train_step")
    assert stopped.step == 1
    (run / STOPPED).unlink()
    stopped, run = interrupted("cobra.training.run_state.StateReader.read_data")
    assert stopped.step is None and json.loads((run / STOPPED).read_text())["step"] == 1
    assert "stopped by SIGTERM before the first step of this start" in capsys.readouterr().out


@pytest.mark.fault("A1")
def test_a_request_while_weights_are_read_blames_no_file(tmp_path, monkeypatch):
    torch.save({"model": {"projector": {}}}, tmp_path / "weights.pt")
    monkeypatch.setattr(torch, "load", lambda *values, **named: signal.raise_signal(signal.SIGTERM))
    with StopRequests(), pytest.raises(Stopped):
        read_checkpoint(tmp_path / "weights.pt")


@pytest.mark.fault("A5")
def test_a_request_before_the_directory_is_held_is_told_and_leaves_no_mark(interrupted, capsys):
    stopped, run = interrupted("cobra.training.pretrain.hold_together")
    assert stopped.step is None and not run.exists()
    assert "stopped by SIGTERM before the first step of this start" in capsys.readouterr().out


@pytest.mark.fault("A10")
def test_a_mark_that_cannot_be_written_does_not_hide_how_a_run_was_stopped(tmp_path):
    (tmp_path / "full").touch()
    told = describe_stop(tmp_path / "full" / "run", None, Stopped("SIGTERM", 4, saved=False))
    assert told.startswith("stopped by SIGTERM after step 4; its state is not saved")
    assert "stopped by SIGTERM" in describe_stop(tmp_path / "full" / "run", None, Stopped("SIGTERM"))


@pytest.mark.fault("A13")
def test_a_second_interrupt_ends_the_run_and_what_torchrun_makes_of_one_does_not():
    with StopRequests() as stop:
        stop.wait_for_steps()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.agreed(CPU)[0] == "an interrupt from the keyboard"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequests() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.fault("A2")
def test_a_save_that_takes_longer_than_there_is_time_is_not_begun(tmp_path, capsys):
    with StopRequests(grace_seconds=30) as stop:
        steps = _At(2, Recorder(), lambda: (saver.finish(), _slow(saver), signal.raise_signal(signal.SIGTERM)))
        loop = open_loop(trainer(), rows_with_nan(), tmp_path, steps, save_interval_steps=4)
        saver = loop.context.saver
        with pytest.raises(Stopped) as stopped:
            loop.run(stop)
    assert (stopped.value.step, stopped.value.saved) == (2, False)
    assert "takes about 45 s" in capsys.readouterr().out
    assert not states(tmp_path / "resume")
    assert "its state is not saved" in describe_stop(tmp_path, None, stopped.value)
    assert not (tmp_path / STOPPED).exists()


def _slow(saver: RunSaver) -> None:
    saver.seconds = 45.0


class _At:
    """A recorder that does something when a step is logged."""

    def __init__(self, step: int, recorder: Recorder, action) -> None:
        self.step, self.recorder, self.action = step, recorder, action

    def commit(self, step, *values, **more):
        if step == self.step:
            self.action()
        return self.recorder.commit(step, *values, **more)

    def stop_clock(self):
        pass


class Looks:
    """Looks at held-out rows with a falling loss; a request to stop comes in the midst of one."""

    def __init__(self, asked_at: int | None = None) -> None:
        self.asked_at, self.left = asked_at, 0

    def evaluate(self, vlm, world, mixed_precision, step, run_dir, between):
        if step == self.asked_at:
            signal.raise_signal(signal.SIGTERM)
        self.left += 1
        between()
        self.left -= 1
        return {"Validation Loss": 10.0 - step}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[list, list[str]]:
    """Losses of all steps, and the checkpoints."""
    folder, recorder = tmp_path_factory.mktemp("undisturbed"), _At(0, Recorder(), None)
    train(trainer(), rows_with_nan(), folder, recorder, Looks(), eval_interval_steps=3)
    return recorder.recorder.steps, checkpoints(folder)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


@pytest.mark.fault("A3")
def test_an_evaluation_that_is_left_again_and_again_is_an_orderly_stop_each_time(tmp_path):
    state = None
    for _ in range(3):
        (tmp_path / STOPPED).unlink(missing_ok=True)
        loop = open_loop(trainer(), rows_with_nan(), tmp_path, None, Looks(asked_at=3), eval_interval_steps=3)
        if state is not None:
            loop.restore(state)
        with StopRequests() as stop, pytest.raises(Stopped) as stopped:
            loop.run(stop)
        describe_stop(tmp_path, state, stopped.value)
        [state] = states(tmp_path / "resume")
        assert stopped.value.saved and json.loads((tmp_path / STOPPED).read_text())["step"] == 3


def stop_and_go_on(folder: Path, rows: Rows, evaluator: Looks, step: int) -> list:
    """Train until a request stops the run at a step that is neither looked at nor logged, then to the end."""
    recorder = _At(0, Recorder(), None)
    with StopRequests() as stop, pytest.raises(Stopped) as stopped:
        open_loop(trainer(), rows, folder, recorder, evaluator, eval_interval_steps=3).run(stop)
    assert (stopped.value.step, stopped.value.saved) == (step, True)
    state = states(folder / "resume")[-1]
    assert read_state(state).step == step and read_state(state).unreported is not None
    assert len(recorder.recorder.steps) == step - 1
    loop = open_loop(trainer(), rows, folder, recorder, Looks(), eval_interval_steps=3)
    loop.restore(state)
    loop.run()
    return recorder.recorder.steps


@pytest.mark.fault("A3")
@pytest.mark.parametrize("step", [3, 4, 8])
def test_an_evaluation_is_left_and_done_again(tmp_path, undisturbed, step):
    evaluator = Looks(asked_at=step)
    assert stop_and_go_on(tmp_path, rows_with_nan(), evaluator, step) == undisturbed[0]
    assert evaluator.left == 1
    assert checkpoints(tmp_path) == undisturbed[1]


@pytest.mark.fault("A3")
def test_a_checkpoint_is_left_and_written_again(tmp_path, undisturbed, monkeypatch):
    save = torch.save

    def asked_to_stop(value, file):
        signal.raise_signal(signal.SIGTERM)
        save(value, file)

    monkeypatch.setattr("cobra.training.checkpointing.torch.save", asked_to_stop)
    began = tmp_path / "checkpoints"
    with StopRequests() as stop, pytest.raises(Stopped):
        open_loop(trainer(), rows_with_nan(), tmp_path, _At(0, Recorder(), None), Looks(), eval_interval_steps=3).run(
            stop
        )
    assert not [*began.iterdir()]
    monkeypatch.undo()
    state = states(tmp_path / "resume")[-1]
    loop = open_loop(trainer(), rows_with_nan(), tmp_path, _At(0, Recorder(), None), Looks(), eval_interval_steps=3)
    loop.restore(state)
    loop.run()
    assert checkpoints(tmp_path) == undisturbed[1]


WORKERS = """
import os, signal, sys, time
import torch
from cobra.training.batches import grouped, open_loader
from cobra.training.preemption import StopRequests
from cobra.util.errors import UserError

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 24
    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.full((int(sys.argv[2]),), float(index))

def collate(rows):
    return {"rows": torch.stack(rows)}

if __name__ == "__main__":
    rows = Rows()
    loader = open_loader(rows, collate, torch.utils.data.SequentialSampler(rows), 2, 2, False)
    seen = []
    with StopRequests() as stop:
        stop.wait_for_steps()
        for read in grouped(loader, 1):
            if isinstance(read, UserError):
                print("told:", read)
                break
            seen += read[0]["rows"][:, 0].int().tolist()
            if len(seen) == 6 and sys.argv[1] == "group":
                os.killpg(0, signal.SIGTERM)
            if len(seen) == 6 and sys.argv[1] == "killed":
                print(*(worker.pid for worker in loader._iterator._workers), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            if len(seen) == 6 and sys.argv[1] == "worker":
                os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)
                # torch would raise here, in the midst of a step.
                time.sleep(0.5)
        print(stop.is_asked, seen)
"""


def run_with_workers(tmp_path: Path, *arguments: str, wrapper: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    script = tmp_path / "script.py"
    script.write_text(WORKERS)
    return subprocess.run(
        [*wrapper, sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=120,
    )


@pytest.mark.fault("A1")
def test_data_workers_outlive_a_signal_to_the_process_group(tmp_path):
    ended = run_with_workers(tmp_path, "group", "1")
    assert ended.stdout == f"True {list(range(24))}\n" and ended.returncode == 0, ended.stderr


@pytest.mark.fault("A1")
def test_data_workers_end_with_the_process_that_they_read_for(tmp_path):
    ended = run_with_workers(tmp_path, "killed", "1")
    assert ended.returncode == -signal.SIGKILL
    left, deadline = [int(pid) for pid in ended.stdout.split()], time.monotonic() + 60
    assert len(left) == 2
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [pid for pid in left if is_running(pid)]
    assert not left


@pytest.mark.fault("A1")
def test_a_data_worker_that_is_killed_is_told_between_steps(tmp_path):
    ended = run_with_workers(tmp_path, "worker", "1")
    assert "told: a data worker was killed, for want of memory perhaps" in ended.stdout, ended.stderr
    assert ended.returncode == 0


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.fault("F3")
def test_too_little_shared_memory_is_told_and_waits_for_nothing(tmp_path):
    mount = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh")
    if os.geteuid() or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    # 2 MB a batch.
    ended = run_with_workers(tmp_path, "none", "250000", wrapper=mount)
    assert "told: a data worker cannot hand over its batch through shared memory" in ended.stdout, ended.stderr
    assert "--shm-size" in ended.stdout and "--num_workers 0" in ended.stdout and ended.returncode == 0
