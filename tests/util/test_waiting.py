"""Lines about long work, and an interrupt in the first seconds of a program."""

import re
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from cobra.util import waiting
from cobra.util.waiting import loading, tell_waiting

ROOT = Path(__file__).parents[2]
TRAIN = ("--dry_run", "--device", "cpu", "--model.type", "cobra-tiny")


def test_long_work_is_named_and_named_again(monkeypatch):
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "FURTHER_SECONDS", 0.02)
    lines, twice = [], threading.Event()

    def say(line):
        lines.append(line)
        if len(lines) == 2:
            twice.set()

    with tell_waiting("reading the rows", say):
        assert twice.wait(10)
    assert lines[0] == "reading the rows ..." and re.fullmatch(r"reading the rows: \d min so far ...", lines[1])
    count = len(lines)
    with tell_waiting("nothing", say):
        pass
    assert len(lines) == count


def test_other_processes_say_nothing(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    waiting.say("reading")
    assert capsys.readouterr().err == ""


def test_an_ignored_interrupt_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with loading():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.fault("E10")
@pytest.mark.parametrize("module", ["yaml", "torch._C", "torch.nn.functional", "cobra.training.schedule"])
@pytest.mark.parametrize("program", [("-m", "cobra", "train"), (str(ROOT / "scripts" / "pretrain.py"),)])
def test_an_interrupt_while_modules_are_imported_is_one_word(program, module):
    command = [sys.executable, "-X", "importtime", *program, *TRAIN]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # As from a terminal: what is started in the background of a script ignores interrupts.
    taken = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, **pipes, cwd=ROOT, preexec_fn=taken) as process:
        for line in process.stderr:
            if re.search(rf"\| +{re.escape(module)}$", line):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    said = [line for line in rest.splitlines() if not line.startswith("import time:")]
    assert (process.returncode, said) == (130, ["interrupted"])
