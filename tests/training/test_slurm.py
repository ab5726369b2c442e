"""The scripts for clusters, as they stand in `docs`: they survive time limits and losses, and queue nothing in vain."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from slurm_standin import Slurm, free_port
from test_pretrain import ROOT, losses, train_arguments
from test_pretrain import rows_dir as rows_dir

from cobra.training.run_state import states

pytestmark = [pytest.mark.fault("A5"), pytest.mark.timeout(600)]

SLURM, TORCHRUN = ROOT / "docs" / "slurm.sh", ROOT / "docs" / "torchrun.sh"
STEPS = 12


class Cluster:
    """The script for Slurm in a queue, and the run directory that it writes to."""

    def __init__(self, folder: Path, rows: Path, nodes: int, processes: int, *more: str) -> None:
        self.run_dir = folder / "run"
        steps = ("--model.finetune_max_steps", str(STEPS), "--model.finetune_per_device_batch_size", "1")
        self._arguments = train_arguments(rows, folder / "other", "other", *steps, "--num_workers", "1", *more)
        commands = folder / "commands"
        commands.mkdir()
        self._slurm = Slurm(commands, nodes, processes)

    def steps(self) -> int:
        log = self.run_dir / "run.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def run(self, up_to_step: int = STEPS + 1):
        """Run the job; its time is nearly up once a step has been logged."""
        return self._slurm.run(SLURM, self._arguments, ROOT, lambda: self.steps() >= up_to_step, RUN=str(self.run_dir))

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


@pytest.mark.slow
@pytest.mark.fault("A6")
def test_run_that_diverges_fails_at_every_start_and_is_not_queued_again(rows_dir, tmp_path):
    cluster = Cluster(tmp_path, rows_dir, 1, 1, "--model.finetune_learning_rate", "1e30", "--max_skipped", "4")
    for _ in range(2):
        job = cluster.run()
        assert job.code != 0 and not job.requeued and not cluster.is_finished(), job.output
        assert "steps in a row" in job.output


def start_machines(commands: Path, arguments: list[str], **environment: str) -> list[subprocess.Popen]:
    """Start the script without a scheduler on two machines of one process each."""
    Slurm(commands, nodes=2, gpus=1)
    variables = {"NODES": "2", "GPUS": "1", "HEAD": "localhost", "PORT": str(free_port()), **environment}
    variables["PATH"] = f"{commands}{os.pathsep}{os.environ['PATH']}"
    agents = []
    for _ in range(2):
        command = ["bash", str(TORCHRUN), *arguments]
        agents.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, stdout=subprocess.PIPE))
        # The first one holds the rendezvous.
        time.sleep(3)
    return agents


@pytest.mark.slow
@pytest.mark.fault("E14")
def test_machines_without_a_scheduler_train_together(rows_dir, tmp_path):  # noqa: F811
    steps = ("--model.finetune_max_steps", "3", "--model.finetune_per_device_batch_size", "2")
    agents = start_machines(tmp_path, train_arguments(rows_dir, tmp_path, "run", *steps))
    told = b"".join(agent.communicate(timeout=240)[0] for agent in agents)
    assert [agent.returncode for agent in agents] == [0, 0] and b"2 processes on cpu" in told
    assert len(losses(tmp_path / "run")) == 3


@pytest.mark.slow
@pytest.mark.fault("A14")
def test_the_loss_of_a_machine_ends_the_others_and_the_same_commands_go_on(rows_dir, tmp_path):  # noqa: F811
    steps = ("--model.finetune_max_steps", "200", "--model.finetune_per_device_batch_size", "2")
    arguments = train_arguments(rows_dir, tmp_path, "run", *steps, "--save_interval_steps", "8")
    log = tmp_path / "run" / "run.jsonl"

    first, second = start_machines(tmp_path, arguments, JOIN_TIMEOUT="60")
    while not log.exists() or log.read_bytes().count(b"\n") < 20:
        assert first.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()
    for pid in (second.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    second.wait()
    assert first.wait(timeout=120) == 1 and states(tmp_path / "run" / "resume")
    assert [agent.wait() for agent in start_machines(tmp_path, arguments)] == [0, 0]
    assert len(losses(tmp_path / "run")) == 200
