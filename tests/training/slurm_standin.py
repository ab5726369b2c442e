"""A scheduler of one job at a time, with the commands that a batch script calls: srun, scontrol and torchrun.

It does as Slurm does: `--signal=B:` signals the batch shell alone; srun passes SIGUSR1 on to its tasks and answers
SIGTERM by killing them; `--kill-on-bad-exit=1` kills the other tasks of a step; what is left when the time is up is
killed.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SRUN = """
import signal, subprocess, sys, time
from os import environ
words = sys.argv[1:]
kill_on_bad_exit = "--kill-on-bad-exit=1" in words
words = [word for word in words if word != "--kill-on-bad-exit=1"]
tasks = [subprocess.Popen(words) for _ in range(int(environ["SLURM_NNODES"]))]

def forward(number, frame):
    for task in tasks:
        task.send_signal(signal.SIGKILL if number == signal.SIGTERM else number)

signal.signal(signal.SIGUSR1, forward)
signal.signal(signal.SIGTERM, forward)
while any(task.poll() is None for task in tasks):
    if kill_on_bad_exit and any(task.poll() for task in tasks):
        # Slurm sends SIGTERM and then SIGKILL; no task may need the time between them.
        forward(signal.SIGTERM, None)
    time.sleep(0.01)
sys.exit(max(abs(task.returncode) for task in tasks))
"""

SCONTROL = """
import os, sys
if sys.argv[1] == "show":
    print("localhost")
else:
    assert sys.argv[1:] == ["requeue", os.environ["SLURM_JOB_ID"]], sys.argv
    open(os.environ["STANDIN_REQUEUED"], "a").write("requeue\\n")
"""

TORCHRUN = """
import runpy, sys
runpy.run_module("torch.distributed.run", run_name="__main__")
"""


# The script's rule for the port of a job.
FIRST_PORT = 15000


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclass(frozen=True)
class Job:
    """One start of a batch script.

    code: Exit code of the script.
    output: All that it and its steps have written.
    requeued: It has asked to be queued again.
    """

    code: int
    output: str
    requeued: bool


class Slurm:
    """A queue with one job in it."""

    def __init__(self, folder: Path, nodes: int, gpus: int) -> None:
        """Make the commands in a folder."""
        self._folder, self._nodes, self._gpus = folder, nodes, gpus
        self._restarts = 0
        for name, source in (("srun", SRUN), ("scontrol", SCONTROL), ("torchrun", TORCHRUN)):
            path = folder / name
            path.write_text(f"#!{sys.executable}\n{source}")
            path.chmod(0o755)

    def run(
        self,
        script: Path,
        arguments: list[str],
        cwd: Path,
        time_is_nearly_up: Callable[[], bool],
        minutes: float = 3,
        **environment: str,
    ) -> Job:
        """Run the script once.

        Args:
            script: A batch script; the signal that its `#SBATCH` lines ask for is sent once to its shell.
            arguments: What follows the script's name on sbatch's command line.
            cwd: Working directory.
            time_is_nearly_up: Looked at until it says so.
            minutes: Time limit, after which all is killed.
            environment: What the shell of sbatch exports.
        """
        [name] = re.findall(r"^#SBATCH .*--signal=B:(\w+)@\d+", script.read_text(), re.MULTILINE)
        requeued = self._folder / f"requeued-{self._restarts}"
        variables = {
            **os.environ,
            **environment,
            "PATH": f"{self._folder}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": str(free_port() - FIRST_PORT),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_NNODES": str(self._nodes),
            "SLURM_GPUS_ON_NODE": str(self._gpus),
            "SLURM_RESTART_COUNT": str(self._restarts),
            "STANDIN_REQUEUED": str(requeued),
        }
        output = self._folder / f"output-{self._restarts}.txt"
        with output.open("wb") as file:
            # A group of its own, so that what is left of the job can be killed.
            shell = subprocess.Popen(
                ["bash", str(script), *arguments],
                **{"cwd": cwd, "env": variables, "stdout": file, "stderr": file, "start_new_session": True},
            )
            self._watch(shell, signal.Signals[f"SIG{name}"], time_is_nearly_up, 60 * minutes)
        self._restarts += 1
        return Job(shell.returncode, output.read_text(), requeued.exists())

    def _watch(
        self, shell: subprocess.Popen, number: signal.Signals, nearly_up: Callable[[], bool], seconds: float
    ) -> None:
        end, signalled = time.monotonic() + seconds, False
        while shell.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
            if not signalled and nearly_up():
                shell.send_signal(number)
                signalled = True
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
