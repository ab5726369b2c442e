"""Training that is killed and stopped at any moment, and goes on: no step lost, none done differently.

The short form forks its starts from a process that has imported everything; the long form, for `make soak`, types the
commands of a user, with 25 kills and 10 requests to stop over three runs, and as many of a run with data workers.
"""

import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_loop import Rows, train, trainer
from test_matrix import make_rows
from test_pretrain import SCRATCH
from training_run import SLOW_SAVE, CommandStart, ForkedStart, Start

from cobra.models.checkpoint import read_checkpoint
from cobra.models.run_folder import BEST, LATEST
from cobra.training.preemption import EXIT_STOPPED
from cobra.training.run_directory import STOPPED
from cobra.training.run_state import RESUME, RunSaver, state_step, states

pytestmark = pytest.mark.timeout(1800)

SAVE_INTERVAL = 8
# Numbers of a step that are not the same in every start.
MEASURED = ("Step Time", "Tokens/s", "Samples/s", "Memory (GB)")


# What goes on when a start is ended: a state is being saved, a checkpoint written, a step taken, or none has begun.
STAGES = ("save", "write", "step", "step", "start")
# Those that a request to stop finds, and whom a kill, where processes read rows for those that train.
WORKER_STAGES = ("step", "save", "evaluate", "write", "step")
WORKER_KILLED = ("worker", "first", "last", "first")


@dataclass(frozen=True)
class Moment:
    """When and how a start is ended from outside."""

    number: signal.Signals
    stage: str
    after: int
    """The step that has been done by then; any for `start`."""
    share: float
    """How far into the stage."""
    whom: str
    """`all` processes, or alone the `first` (torchrun where it is used), the `last` or a data `worker`."""
    processes: int


@dataclass(frozen=True)
class Form:
    """How long a drill is."""

    kind: type[Start]
    steps: int
    kills: int
    stops: int
    processes: tuple[int, ...]
    """In turn of the starts."""
    workers: int = 0
    """Processes that read rows for each that trains."""

    @property
    def is_bitwise(self) -> bool:
        return len(self.processes) == 1

    def moments(self) -> list[Moment]:
        """Random moments of every stage, in the order of their steps."""
        draw = random.Random(self.kills)
        kill_stages, stop_stages = (("step",), WORKER_STAGES) if self.workers else (STAGES, STAGES[:4])
        planned = [(signal.SIGKILL, stage) for stage in islice(cycle(kill_stages), self.kills)]
        planned += [(signal.SIGTERM, stage) for stage in islice(cycle(stop_stages), self.stops)]
        draw.shuffle(planned)
        # An epoch's end, with a state and a checkpoint, comes after the last of them.
        steps = sorted(draw.randrange(1, self.steps - 14) for _ in planned)
        # A save goes on in processes that outlive torchrun, or another one, for a moment.
        whom = cycle(("first", "last", "all") if self.kind is CommandStart else ("all",))
        whom = cycle(WORKER_KILLED) if self.workers else whom
        return [
            Moment(number, stage, step, draw.random(), next(whom) if self._alone(number, stage) else "all", processes)
            for (number, stage), step, processes in zip(planned, steps, cycle(self.processes), strict=False)
        ]

    def _alone(self, number: signal.Signals, stage: str) -> bool:
        """Return whether one of the processes is chosen; torchrun is who is asked to stop."""
        return stage == "step" and (number == signal.SIGKILL or not self.workers)


FORMS = {
    "long forked": Form(ForkedStart, 20, 2, 1, (1,)),
    "mixed": Form(ForkedStart, 20, 2, 1, (1, 2)),
    "long one": Form(CommandStart, 80, 9, 4, (1,)),
    "long two": Form(CommandStart, 60, 6, 2, (2,)),
    "long mixed": Form(CommandStart, 80, 10, 4, (1, 3, 2)),
    "long workers": Form(CommandStart, 120, 10, 10, (2,), 2),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A prepared LLaVA-CoT-100k: 13 global batches of six an epoch, of pictures or of text; five rows held out."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "download" / "llava-cot-100k"
    folder.mkdir(parents=True)
    rows = []
    for number in range(76):
        answer = "A red circle. " * (1 + number % 4)
        turns = [{"from": "human", "value": "What is in the picture?"}, {"from": "gpt", "value": answer}]
        row = {"id": f"row-{number}", "conversations": turns}
        if number % 9 != 8:
            row["image"] = f"{number}.png"
            Image.new("RGB", (48, 48), (3 * number, 255 - 3 * number, 90)).save(folder / row["image"])
        rows.append(row)
    (folder / "llava_cot_100k.json").write_text(json.dumps(rows[5:]))
    (folder / "llava_cot_100k_holdout.json").write_text(json.dumps(rows[:5]))
    return root


def lines(run: Path) -> list[dict]:
    """The run's line of every step."""
    path = run / f"{run.name}.jsonl"
    values = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{name.removeprefix("Finetune/"): value for name, value in line.items()} for line in values]


class Drill:
    """A run that is started again until it is finished, and what each start has done."""

    def __init__(self, form: Form, data: Path, folder: Path) -> None:
        self.form, self.run, self.starts = form, folder / "run", list[Start]()
        self.killed: list[str] = []
        self.repeated: list[int] = []
        self._record = folder / "record"
        self._reached, self._may_repeat = 0, 0
        self._arguments = [
            *("--model.type", "cobra-tiny", *SCRATCH, "--device", "cpu", "--run_root_dir", str(folder)),
            *("--run_id", self.run.name, "--dataset.type", "llava-cot-100k", "--dataset.dataset_root_dir", str(data)),
            *("--model.finetune_global_batch_size", "6", "--model.finetune_learning_rate", "1e-4"),
            *("--model.finetune_epochs", "9", "--model.finetune_max_steps", str(form.steps)),
            *("--save_interval_steps", str(SAVE_INTERVAL), "--eval_interval_steps", "5", "--eval_samples", "0"),
            *("--num_workers", str(form.workers)),
        ]

    def start(self, processes: int, *torchrun: str) -> Start:
        arguments = [*self._arguments, "--model.finetune_per_device_batch_size", str(6 // processes)]
        self.starts.append(self.form.kind(arguments, processes, self._record / f"{len(self.starts):02d}", torchrun))
        return self.starts[-1]

    def interrupt(self, moment: Moment) -> None:
        """Start the run and end it at a moment."""
        start = self.start(moment.processes)
        if not self._wait_for(moment, start):
            pytest.fail(f"the run ended before {moment}:\n{start.end()[1]}")
        if moment.number == signal.SIGTERM or moment.whom == "first":
            start.signal(moment.number, [start.first()])
        elif moment.whom == "last":
            start.signal(moment.number, start.pids()[-1:])
        elif moment.whom == "worker":
            start.signal(moment.number, start.data_workers()[-1:])
        else:
            start.kill()
        start.signal(signal.SIGCONT, start.pids())
        code, output = start.end()
        self._check_files()
        if start.steps():
            self._check_repeated(start)
            self._may_repeat = SAVE_INTERVAL if moment.number == signal.SIGKILL else 0
        if moment.number == signal.SIGKILL:
            assert code != 0, output
            assert moment.stage not in ("save", "write") or self._unfinished(moment.stage), "the kill came too late"
            self.killed.append(moment.stage)
        else:
            self._check_stopped(start, code, output)

    def _check_stopped(self, start: Start, code: int, output: str) -> None:
        through_torchrun = isinstance(start, CommandStart) and start.processes > 1
        assert code == (1 if through_torchrun else EXIT_STOPPED), output
        assert "stopped by SIGTERM after step" in output
        newest = state_step(states(self.run / RESUME)[-1])
        # A step that was stopped before it was looked at and logged is logged by the next start.
        assert newest == start.steps()[-1].step and newest - self._reached in (0, 1)
        assert json.loads((self.run / STOPPED).read_text())["step"] == newest
        self._reached = newest

    def finish(self, processes: int) -> None:
        """Start the run a last time."""
        start = self.start(processes)
        code, output = start.end()
        assert code == 0, output
        self._check_repeated(start)
        self._check_files()

    def _check_repeated(self, start: Start) -> None:
        """A start has done few of the steps again that had been logged before it."""
        self.repeated.append(self._reached - start.steps()[0].step + 1)
        assert 0 <= self.repeated[-1] <= self._may_repeat
        self._reached = len(lines(self.run))

    def _wait_for(self, moment: Moment, start: Start) -> bool:
        """Wait for a moment, and hold the processes in it; False where the run ended before."""
        while start.is_running():
            time.sleep(0.001)
            if moment.stage == "start" and len(start.pids()) == moment.processes:
                time.sleep(start.seconds * moment.share)
                return start.is_running()
            steps = start.steps()
            if not steps or steps[-1].step < moment.after:
                continue
            if moment.stage == "evaluate":
                if start.is_evaluating():
                    time.sleep(0.2 * moment.share)
                    return start.is_running()
                continue
            if moment.stage == "step":
                time.sleep(0.2 * moment.share)
                return start.is_running()
            if self._unfinished(moment.stage):
                time.sleep(0.05 * moment.share if moment.stage == "save" else 0)
                start.signal(signal.SIGSTOP, start.pids())
                time.sleep(0.02)
                if self._unfinished(moment.stage):
                    return True
                start.signal(signal.SIGCONT, start.pids())
        return False

    def _unfinished(self, stage: str) -> list[Path]:
        """Return what is being written, or was when the run was killed: a start deletes what is left by another."""
        folders = {"save": RESUME, "write": LATEST.parent}
        return [*(self.run / folders[stage]).glob("*.tmp")] if stage in folders else []

    def _check_files(self) -> None:
        """What there is, is whole."""
        for path in (self.run / LATEST, self.run / BEST):
            if path.exists():
                modules = read_checkpoint(path)
                assert all(tensor.isfinite().all() for tensors in modules.values() for tensor in tensors.values())
        assert [line["Step"] for line in lines(self.run)] == list(range(1, len(lines(self.run)) + 1))


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] if "long" in name else []) for name in FORMS])
def form(request) -> Form:
    return FORMS[request.param]


@pytest.fixture(scope="module")
def whole_runs(data, tmp_path_factory) -> Callable[[Form], Drill]:
    """Runs without an interruption."""

    @cache
    def run(kind: type[Start], steps: int, processes: int, workers: int) -> Drill:
        drill = Drill(Form(kind, steps, 0, 0, (processes,), workers), data, tmp_path_factory.mktemp("whole"))
        drill.finish(processes)
        return drill

    return lambda form: run(form.kind, form.steps, form.processes[0], form.workers)


@pytest.mark.fault("A1")
@pytest.mark.fault("A3")
def test_interrupted_run_is_the_uninterrupted_one(form, whole_runs, data, tmp_path):
    moments, drill, whole = form.moments(), Drill(form, data, tmp_path), whole_runs(form)
    for moment in moments:
        drill.interrupt(moment)
    drill.finish(form.processes[-1])
    assert Counter(drill.killed) == Counter(moment.stage for moment in moments if moment.number == signal.SIGKILL)
    assert len(moments) == form.kills + form.stops
    assert_same_batches(drill, whole)
    assert_same_log(drill, whole)
    assert_same_weights(drill, whole)


@pytest.mark.slow
@pytest.mark.fault("A2")
def test_a_slow_save_has_the_time_that_torchrun_grants(data, tmp_path, monkeypatch):
    monkeypatch.setenv(SLOW_SAVE, "45")
    drill = Drill(Form(CommandStart, 400, 0, 1, (2,), 2), data, tmp_path)
    start = drill.start(2, "--shutdown-timeout", "110")
    while start.is_running() and len(start.steps()) < 3:
        time.sleep(0.05)
    start.signal(signal.SIGTERM, [start.first()])
    code, output = start.end()
    assert code == 1 and "the state is saved" in output, output
    assert state_step(states(drill.run / RESUME)[-1]) == start.steps()[-1].step == len(lines(drill.run))


def assert_same_batches(drill: Drill, whole: Drill) -> None:
    """Every step that any start has done had the same rows and the same loss."""
    [start] = whole.starts
    rows, losses = Counter[tuple[int, str]](), {}
    for rank in range(start.processes):
        for step in start.steps(rank):
            rows.update((step.step, row) for row in step.rows)
            losses[step.step] = step.loss
    assert len(losses) == whole.form.steps and rows.total() == 6 * len(losses)
    for start in drill.starts:
        ranks = [{step.step: step for step in start.steps(rank)} for rank in range(start.processes)]
        for number in set().union(*ranks):
            done = [rank[number] for rank in ranks if number in rank]
            expected = Counter({row: count for (step, row), count in rows.items() if step == number})
            found = Counter(row for step in done for row in step.rows)
            assert found == expected if len(done) == len(ranks) else found <= expected, number
            for step in done:
                assert step.loss == (
                    losses[number] if drill.form.is_bitwise else pytest.approx(losses[number], rel=1e-5)
                )


def assert_same_log(drill: Drill, whole: Drill) -> None:
    found, expected = lines(drill.run), lines(whole.run)
    assert len(found) == len(expected)
    for line, other in zip(found, expected, strict=True):
        assert line.keys() == other.keys()
        line, other = ({name: line[name] for name in line if name not in MEASURED} for line in (line, other))
        assert line == (other if drill.form.is_bitwise else pytest.approx(other, rel=1e-4))
        assert line["Loss (Raw)"] == pytest.approx(other["Loss (Raw)"], rel=1e-5)


def assert_same_weights(drill: Drill, whole: Drill) -> None:
    """The same files, and nothing left of what was being written; the same weights in the last one."""
    names = [sorted(path.name.partition("-loss")[0] for path in one.run.rglob("*")) for one in (drill, whole)]
    assert names[0] == names[1]
    for path in (LATEST, BEST) if drill.form.is_bitwise else (LATEST,):
        found, expected = (read_checkpoint(one.run / path) for one in (drill, whole))
        for module, tensors in expected.items():
            for name, tensor in tensors.items():
                tolerance = 0.0 if drill.form.is_bitwise else 2e-5
                torch.testing.assert_close(found[module][name], tensor, rtol=0, atol=tolerance)


class Repeated:
    """Takes the place of the metrics: how many steps a kill would cost that comes just after a step was logged."""

    def __init__(self, run: Path) -> None:
        self.run, self.steps = run, list[int]()

    def commit(self, step, *rest, **more):
        self.steps.append(step - max(map(state_step, states(self.run / RESUME)), default=0))
        return {}


@pytest.mark.parametrize("interval", [1, 5])
def test_a_kill_costs_at_most_the_interval_however_slow_the_disk(tmp_path, monkeypatch, interval):
    waited_for = threading.Event()
    write, finish = torch.distributed.checkpoint.FileSystemWriter.write_data, RunSaver.finish

    def slow_write(self, *arguments):
        waited_for.wait()
        return write(self, *arguments)

    def waiting_finish(self):
        waited_for.set()
        try:
            return finish(self)
        finally:
            waited_for.clear()

    monkeypatch.setattr(torch.distributed.checkpoint.FileSystemWriter, "write_data", slow_write)
    monkeypatch.setattr(RunSaver, "finish", waiting_finish)
    repeated = Repeated(tmp_path)
    # Epochs of eight steps.
    train(trainer(steps=12), Rows(make_rows()[:31]), tmp_path, repeated, save_interval_steps=interval)
    assert len(repeated.steps) == 12 and max(repeated.steps) == max(1, interval // 2 * 2)
