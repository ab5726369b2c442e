"""The guide's Slurm script, run as it stands: it survives time limits, and queues no job that cannot succeed."""

import json
import re
import socket
from pathlib import Path

import pytest
from slurm_standin import Slurm
from test_pretrain import ROOT, losses, train_arguments
from test_pretrain import rows_dir as rows_dir

pytestmark = [pytest.mark.fault("A5"), pytest.mark.timeout(600)]

# What the script trains, and on what; everything else of it stays.
TRAINED = re.compile(r"(?<=scripts/pretrain\.py )--dataset\.type.*?--sharding_group_size 8", re.DOTALL)
STEPS = 12


def guide_script(arguments: list[str], run: Path, processes: int) -> str:
    """The script with another run, on another number of processes, at a port that is free."""
    [script] = re.findall(r"^```text\n(#!/bin/bash\n.*?)^```$", (ROOT / "FINETUNING_GUIDE.md").read_text(), re.M | re.S)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for old, new in (("--nproc-per-node 8", f"--nproc-per-node {processes}"), (":29500", f":{port}")):
        assert script.count(old) == 1
        script = script.replace(old, new)
    script, runs = re.subn(r"^RUN=.*$", f"RUN={run}", script, flags=re.M)
    script, trained = TRAINED.subn(" ".join(arguments), script)
    assert (runs, trained) == (1, 1)
    return script


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
