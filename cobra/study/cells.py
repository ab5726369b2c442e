"""Cells of a study: an arm with a seed, each one run of training."""

import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import draccus

from cobra.study.config import StudyConfig
from cobra.training.config import PretrainConfig, stage_prefix
from cobra.training.preemption import EXIT_STOPPED, Stopped
from cobra.training.run_directory import FINISHED, STOPPED
from cobra.util.errors import UserError
from cobra.util.files import read_json, write_text
from cobra.util.program import PART, program

# Last lines of a training's log that an error shows.
_TAIL = 12
# The study scores its models itself: held-out rows are looked at when a training ends, unless flags ask for more.
_NEVER = 10**9


@dataclass(frozen=True)
class Cell:
    """An arm with a seed."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its run's folder and of its files: `without-CAPTION-2`."""
        return f"{self.arm.replace(':', '-')}-{self.seed}"


def cells_of(config: StudyConfig) -> list[Cell]:
    """Return the cells, all arms of a seed before the next seed: a study that is cut short stays balanced."""
    return [Cell(arm, seed) for seed in config.seeds for arm in config.arms]


def training_config(config: StudyConfig, cell: Cell, steps: int | None) -> PretrainConfig:
    """Return the flags of a cell's training; `steps` replaces the number of steps where it is not None."""
    values: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(PretrainConfig)}
    model = config.model
    if steps is not None:
        changed: dict[str, Any] = {f"{stage_prefix(config.stage)}_max_steps": steps}
        model = replace(model, **changed)
    values |= {
        "model": model,
        "dataset": replace(config.dataset, answer=cell.arm),
        "seed": cell.seed,
        "run_root_dir": config.study_dir / "runs",
        "run_id": cell.name,
        "eval_interval_steps": config.eval_interval_steps or _NEVER,
    }
    return PretrainConfig(**values)


class Trainings:
    """Programs that train cells; :meth:`stop` may be called from any thread."""

    def __init__(self, config: StudyConfig, say: Callable[[str], None]) -> None:
        """Start nothing yet; `say` is given the lines of steps, with the cell's name before them."""
        self._config, self._say = config, say
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def train(self, cell: Cell, steps: int | None) -> Path:
        """Train a cell, or go on with it, or take it as it is where it is finished; return its run directory.

        Its screen goes to `logs/` in the study's folder.

        Raises:
            UserError: The training failed; the end of its log is in the message.
            Stopped: It was stopped in order, as by its own time limit: the same command goes on with it.
        """
        config, training = self._config, training_config(self._config, cell, steps)
        run_dir = training.run_root_dir / cell.name
        if (run_dir / FINISHED).is_file():
            return run_dir
        flags, log = config.study_dir / "cells" / f"{cell.name}.yaml", config.study_dir / "logs" / f"{cell.name}.log"
        for file in (flags, log):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_text(flags, str(draccus.dump(training)))
        mark = _read_mark(run_dir)
        code = self._run([*program("train", config.nproc), "--config_path", str(flags)], cell, log)
        # The mark, not the code: torchrun returns 1. An earlier start's may be there still.
        if code and (stopped := _read_mark(run_dir)) not in ({}, mark):
            self._say(f"{cell.name} was stopped by {stopped.get('reason')}: the same command goes on")
            raise Stopped(str(stopped.get("reason")))
        if code:
            tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-_TAIL:])
            raise UserError(
                f"the training of the arm {cell.arm} with seed {cell.seed} ended with code {code}; the end of "
                f"{log}:\n{tail}"
            )
        return run_dir

    def stop(self) -> None:
        """Ask all programs to save their state and end, wait for that, and start no further ones."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
            for process in running:
                process.terminate()
        for process in running:
            process.wait()

    def _run(self, command: list[str], cell: Cell, log: Path) -> int:
        threads = max(1, (os.cpu_count() or 1) // (self._config.nproc * self._config.jobs))
        environment = os.environ | {PART: "study", "OMP_NUM_THREADS": str(threads)}
        with log.open("a") as file:
            with self._lock:
                if self._stopped:
                    return EXIT_STOPPED
                process = subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    env=environment,
                )
                self._running.add(process)
            with process:
                assert process.stdout is not None
                try:
                    for line in process.stdout:
                        file.write(line)
                        file.flush()
                        if line.startswith(("step ", "resuming ")):
                            self._say(f"{cell.name}: {line.rstrip()}")
                except BaseException:
                    # A program that cannot print ends by that, and saves nothing: it is read until it has ended.
                    process.terminate()
                    file.writelines(process.stdout)
                    raise
        self._running.discard(process)
        return process.returncode


def _read_mark(run_dir: Path) -> dict[str, Any]:
    """Return the mark that an orderly stop has left in a run; empty where there is none."""
    mark = run_dir / STOPPED
    return dict(read_json(mark, "the mark of the stop")) if mark.is_file() else {}
