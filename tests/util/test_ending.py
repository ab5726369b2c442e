"""Requests to end a program: what has begun is removed, the signal is what ended it, and others' handling stays."""

import os
import signal
import subprocess
import sys

import pytest

from cobra.util.ending import Terminated, end_in_order

PROGRAM = """
import os, signal, sys
from cobra.util.ending import end_in_order

def ask(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
"""


@pytest.fixture(autouse=True)
def defaults():
    """Handle the signals as a program in a terminal does; nohup has tests ignore SIGHUP."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(body):
    done = subprocess.run([sys.executable, "-c", PROGRAM + body], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_what_stands_in_finally_is_done_and_the_signal_ends_the_program(name):
    body = f"""
with end_in_order():
    try:
        print("begun")
        ask(signal.{name})
    finally:
        ask()
        print("removed")
print("too far")
"""
    assert run(body) == (-getattr(signal, name), "begun\nremoved\n", "")


def test_a_process_that_is_forked_ends_as_it_did():
    body = """
with end_in_order():
    try:
        child = os.fork()
        if not child:
            ask()
        print(os.waitpid(child, 0)[1], flush=True)
    finally:
        print("removed")
"""
    assert run(body) == (0, f"{int(signal.SIGTERM)}\nremoved\n", "")


def test_signals_that_are_handled_or_ignored_stay_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    own = lambda number, frame: None  # noqa: E731
    signal.signal(signal.SIGTERM, own)
    with end_in_order():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and signal.getsignal(signal.SIGTERM) is own
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with end_in_order(), pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
