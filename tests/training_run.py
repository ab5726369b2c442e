"""Starts of a training run that write down the rows and the loss of every step, and can be stopped at any moment.

As a script it is scripts/pretrain.py with such a record; RECORD names the folder.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkserver import forkserver

ROOT = Path(__file__).parents[1]
RECORD = "TRAINING_RECORD"
# Seconds that a state takes to write.
SLOW_SAVE = "TRAINING_SLOW_SAVE"
# In the folder of the record while held-out rows are looked at.
_EVALUATING = "evaluating"
_FLUSH_SECONDS = 0.03


@dataclass(frozen=True)
class Step:
    """A step that one process has done."""

    step: int
    rows: tuple[str, ...]
    """Ids of its share of the global batch."""
    loss: float


def main() -> None:
    """Run scripts/pretrain.py; append this process's id and then each of its steps to a file of the record."""
    rank = os.environ.get("RANK", "0")
    file = os.open(Path(os.environ[RECORD]) / f"{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(value: Any) -> None:
        os.write(file, (json.dumps(value) + "\n").encode())

    note(os.getpid())
    _record_steps(note)
    _mark_evaluations(Path(os.environ[RECORD]) / _EVALUATING)
    _slow_down_disk(float(os.environ.get(SLOW_SAVE, "0")))
    runpy.run_path(str(ROOT / "scripts" / "pretrain.py"), run_name="__main__")


def _record_steps(note: Callable[[Any], None]) -> None:
    from cobra.training.batches import CollateOrPass, ErrorsAsValues
    from cobra.training.strategy import TrainStrategy

    read, collate, train_step = ErrorsAsValues.__getitem__, CollateOrPass.__call__, TrainStrategy.train_step

    # The ids travel with the rows, which worker processes may read long before their step.
    def recorded_read(self: ErrorsAsValues, index: int) -> Any:
        return {**read(self, index), "id": self.dataset.examples[index]["id"]}

    def recorded_collate(self: CollateOrPass, rows: list[Any]) -> Any:
        ids = [row.pop("id") for row in rows]
        return {**collate(self, rows), "ids": ids}

    def recorded_step(self: TrainStrategy, batches: list[Any], rate: float) -> Any:
        rows = [row for batch in batches for row in batch.pop("ids")]
        result = train_step(self, batches, rate)
        note([self.global_step, rows, result.loss])
        return result

    ErrorsAsValues.__getitem__ = recorded_read
    CollateOrPass.__call__ = recorded_collate
    TrainStrategy.train_step = recorded_step


def _mark_evaluations(mark: Path) -> None:
    from cobra.training.evaluator import Evaluator

    evaluate = Evaluator.evaluate

    def marked(self: Evaluator, *arguments: Any) -> Any:
        mark.touch()
        # A moment to be stopped in.
        time.sleep(0.1)
        try:
            return evaluate(self, *arguments)
        finally:
            mark.unlink(missing_ok=True)

    Evaluator.evaluate = marked


def _slow_down_disk(save_seconds: float) -> None:
    """Let every file take a moment to be flushed, so that there is one to be killed in, and states as long as asked."""
    from torch.distributed.checkpoint import FileSystemWriter

    flush, write = os.fsync, FileSystemWriter.write_data

    def slow_flush(file: int) -> None:
        time.sleep(_FLUSH_SECONDS)
        flush(file)

    def slow_write(self: FileSystemWriter, *arguments: Any) -> Any:
        time.sleep(save_seconds)
        return write(self, *arguments)

    os.fsync = slow_flush
    FileSystemWriter.write_data = slow_write


class Start:
    """A start of a run: the processes of one command, and what they have written down.

    Attributes:
        seconds: How long it takes to the first step, roughly.
    """

    seconds: float

    def __init__(self, arguments: list[str], processes: int, record: Path, torchrun: tuple[str, ...] = ()) -> None:
        """Begin; the folder of the record is made.

        Args:
            arguments: Flags of the training.
            processes: Processes that train.
            record: Folder to write down into.
            torchrun: Flags of torchrun.
        """
        self.processes, self.record, self.torchrun = processes, record, torchrun
        record.mkdir(parents=True)
        self._begin(arguments)

    def _begin(self, arguments: list[str]) -> None:
        raise NotImplementedError

    def is_running(self) -> bool:
        raise NotImplementedError

    def first(self) -> int:
        """Return the id of the process that a user would signal."""
        raise NotImplementedError

    def end(self) -> tuple[int, str]:
        """Wait until every process is gone; return the exit code and the output."""
        raise NotImplementedError

    def pids(self) -> list[int]:
        """Return the ids of the processes that train, as far as they have begun."""
        return [values[0] for values in map(self._lines, range(self.processes)) if values]

    def is_evaluating(self) -> bool:
        """Return whether held-out rows are looked at."""
        return (self.record / _EVALUATING).exists()

    def data_workers(self) -> list[int]:
        """Return the ids of the processes that read rows for those that train."""
        found = []
        for pid in self.pids():
            with suppress(OSError):
                found += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return found

    def steps(self, rank: int = 0) -> list[Step]:
        """Return what a process has done so far."""
        return [Step(step, tuple(rows), loss) for step, rows, loss in self._lines(rank)[1:]]

    def _lines(self, rank: int) -> list[Any]:
        file = self.record / f"{rank}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def signal(self, number: int, pids: list[int]) -> None:
        """Send a signal to processes; those that are gone are passed over."""
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill(self) -> None:
        """Kill all processes at once, as a machine that goes down."""
        self.signal(signal.SIGKILL, [self.first(), *self.pids()])


class CommandStart(Start):
    """The command that a user types: the script alone, or through torchrun for several processes."""

    seconds = 6.0

    def _begin(self, arguments: list[str]) -> None:
        command = [sys.executable]
        if self.processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes)]
            command += self.torchrun
        self._process = subprocess.Popen(
            [*command, __file__, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", RECORD: str(self.record)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def is_running(self) -> bool:
        return self._process.poll() is None

    def first(self) -> int:
        return self._process.pid

    def end(self) -> tuple[int, str]:
        # The pipe ends with the last process that can write to it.
        output, _ = self._process.communicate(timeout=300)
        return self._process.returncode, output


class ForkedStart(Start):
    """The same processes forked from one that has imported everything: a start takes a second, and no torchrun."""

    seconds = 1.0

    def _begin(self, arguments: list[str]) -> None:
        context = forkserver()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._output = self.record / "output.txt"
        several = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(self.processes)}
        several["LOCAL_WORLD_SIZE"] = several["WORLD_SIZE"]
        self._processes = []
        for rank in range(self.processes):
            environment = {RECORD: str(self.record)}
            if self.processes > 1:
                environment |= several | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            self._processes.append(context.Process(target=_forked, args=(arguments, environment, self._output)))
        for process in self._processes:
            process.start()

    def is_running(self) -> bool:
        return any(process.is_alive() for process in self._processes)

    def first(self) -> int:
        return self._processes[0].pid

    def end(self) -> tuple[int, str]:
        for process in self._processes:
            process.join(300)
        return self._processes[0].exitcode, self._output.read_text()


def _forked(arguments: list[str], environment: dict[str, str], output: Path) -> None:
    """Be a process of the run."""
    os.environ.update(environment)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, sys.stdout.fileno())
    os.dup2(handle, sys.stderr.fileno())
    sys.argv = [__file__, *arguments]
    main()


if __name__ == "__main__":
    main()
