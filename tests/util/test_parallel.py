"""Work in several processes: order, memory, errors, interrupts and kills."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cobra.util.errors import UserError
from cobra.util.parallel import available_cores, parallel_map

_greeting = ""


def greet(word: str) -> None:
    global _greeting
    _greeting = word


def greeted(number: int) -> tuple[str, int]:
    return _greeting, number


def slow_square(number: int) -> int:
    time.sleep(0.02 * (number % 3))
    return number * number


def fail_at_five(number: int) -> int:
    if number == 5:
        raise KeyError("five")
    return number


def end_abruptly(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order(workers):
    assert list(parallel_map(slow_square, range(30), workers)) == [number * number for number in range(30)]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_process_is_initialised(workers):
    assert list(parallel_map(greeted, range(6), workers, greet, ("hello",))) == [("hello", n) for n in range(6)]


def test_items_are_taken_as_results_are():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = parallel_map(slow_square, items(), 2)
    assert next(results) == 0
    assert len(taken) < 20
    results.close()
    assert len(taken) < 20


def test_error_of_the_function_arrives_where_its_result_would():
    results = parallel_map(fail_at_five, range(100), 2)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(KeyError, match="five"):
        next(results)


def test_killed_worker_is_named():
    with pytest.raises(UserError, match="worker processes was killed.*--num_workers 1"):
        list(parallel_map(end_abruptly, range(3), 2))


def test_workers_end_when_their_parent_is_killed(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "from cobra.util.parallel import parallel_map\n"
        "def work(number):\n"
        f"    Path({str(tmp_path)!r}, f'{{os.getpid()}}.pid').touch()\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    list(parallel_map(work, range(2), 2))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_available_cores():
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
