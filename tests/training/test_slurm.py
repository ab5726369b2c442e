"""The guide's words for clusters: its Slurm script survives time limits and queues no job that cannot succeed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_standin import Slurm
from test_pretrain import ROOT, losses, train_arguments
from test_pretrain import rows_dir as rows_dir

from cobra.training.run_state import states

pytestmark = [pytest.mark.fault("A5"), pytest.mark.timeout(600)]

# What the script trains, and on what; everything else of it stays.
TRAINED = re.compile(r"(?<=scripts/pretrain\.py )--dataset\.type.*?--sharding_group_size 8", re.DOTALL)
STEPS = 12


def guide_script(arguments: list[str], run: Path, processes: int) -> str:
    """The script with another run, on another number of processes, at a port that is free."""
    [script] = re.findall(r"^```text\n(#!/bin/bash\n.*?)^```$", (ROOT / "docs/cluster.md").read_text(), re.M | re.S)
    for old, new in (("--nproc-per-node 8", f"--nproc-per-node {processes}"), (":29500", f":{free_port()}")):
        assert script.count(old) == 1
        script = script.replace(old, new)
    script, runs = re.subn(r"^RUN=.*$", f"RUN={run}", script, flags=re.M)
    script, trained = TRAINED.subn(" ".join(arguments), script)
    assert (runs, trained) == (1, 1)
    return script


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Cluster:
    """The guide's script in a queue, and the run directory that it writes to."""

    def __init__(self, folder: Path, rows: Path, nodes: int, processes: int, *more: str) -> None:
        self.run_dir = folder / "run"
        steps = ("--model.finetune_max_steps", str(STEPS), "--model.finetune_per_device_batch_size", "1")
        arguments = train_arguments(rows, folder, "run", *steps, "--num_workers", "1", *more)
        self._script = folder / "job.sh"
        self._script.write_text(guide_script(arguments, self.run_dir, processes))
        commands = folder / "commands"
        commands.mkdir()
        self._slurm = Slurm(commands, nodes)

    def steps(self) -> int:
        log = self.run_dir / "run.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def run(self, up_to_step: int = STEPS + 1):
        """Run the job; its time is nearly up once a step has been logged."""
        return self._slurm.run(self._script, ROOT, lambda: self.steps() >= up_to_step)

    def is_finished(self) -> bool:
        return (self.run_dir / "finished.json").exists()


@pytest.mark.fault("A4")
@pytest.mark.parametrize(("nodes", "processes"), [(1, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_job_goes_on_after_its_time_limit(rows_dir, tmp_path, nodes, processes):  # noqa: F811
    cluster = Cluster(tmp_path, rows_dir, nodes, processes)
    first = cluster.run(up_to_step=3)
    assert first.requeued and first.code != 0 and not cluster.is_finished(), first.output
    stopped = json.loads((cluster.run_dir / "stopped.json").read_text())
    assert stopped["reason"] == "SIGUSR1" and 3 <= stopped["step"] < STEPS
    last = cluster.run()
    assert last.code == 0 and not last.requeued and cluster.is_finished(), last.output
    assert len(losses(cluster.run_dir)) == STEPS
    assert not (cluster.run_dir / "stopped.json").exists()


def test_broken_job_is_not_queued_again(rows_dir, tmp_path):
    cluster = Cluster(tmp_path, rows_dir, 1, 1, "--pretrained_checkpoint", str(tmp_path / "missing.pt"))
    # Left by an earlier job of the same run.
    cluster.run_dir.mkdir()
    (cluster.run_dir / "stopped.json").write_text("{}")
    job = cluster.run()
    assert job.code != 0 and not job.requeued, job.output
    assert "missing.pt" in job.output


@pytest.mark.fault("A6")
def test_run_that_diverges_fails_at_every_start_and_is_not_queued_again(rows_dir, tmp_path):
    cluster = Cluster(tmp_path, rows_dir, 1, 1, "--model.finetune_learning_rate", "1e30", "--max_skipped", "4")
    for _ in range(2):
        job = cluster.run()
        assert job.code != 0 and not job.requeued and not cluster.is_finished(), job.output
        assert "steps in a row" in job.output


@pytest.mark.slow
@pytest.mark.fault("A14")
def test_the_loss_of_a_machine_ends_the_others_and_the_same_commands_go_on(rows_dir, tmp_path):  # noqa: F811
    steps = ("--model.finetune_max_steps", "200", "--model.finetune_per_device_batch_size", "2")
    arguments = train_arguments(rows_dir, tmp_path, "run", *steps, "--save_interval_steps", "8")
    log = tmp_path / "run" / "run.jsonl"

    def start(port: int) -> list[subprocess.Popen]:
        flags = ("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-conf", "join_timeout=60")
        flags += ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "cobra")
        program = [sys.executable, "-m", "torch.distributed.run", *flags, str(ROOT / "scripts" / "pretrain.py")]
        agents = []
        for _ in range(2):
            agents.append(subprocess.Popen([*program, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}))
            # The first one holds the rendezvous.
            time.sleep(3)
        return agents

    first, second = start(free_port())
    while not log.exists() or log.read_bytes().count(b"\n") < 20:
        assert first.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()
    for pid in (second.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    second.wait()
    assert first.wait(timeout=120) == 1 and states(tmp_path / "run" / "resume")
    assert [agent.wait() for agent in start(free_port())] == [0, 0]
    assert len(losses(tmp_path / "run")) == 200
