"""Processes that work together: how they part."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cobra.util import distributed
from cobra.util.distributed import World

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "rendezvous"), 1), rank=0, world_size=1)


def write_states(tasks: Path, *states: str) -> None:
    for number, state in enumerate(states):
        (tasks / str(number)).mkdir(parents=True, exist_ok=True)
        # The main thread always runs; a name may hold brackets and spaces.
        name = "pt_gloo_runloop" if number else "a) R (b"
        (tasks / str(number) / "stat").write_text(f"{number} ({name}) {state} 1 1 0\n")


@pytest.mark.parametrize(("looks", "pauses"), [("SSS", 3), ("RSSS", 4), ("RRDRSSS", 7), ("SSRSSS", 6), ("SRSRSSSR", 7)])
def test_a_process_parts_when_the_threads_of_its_group_have_slept_three_times(
    group, tmp_path, monkeypatch, looks, pauses
):
    tasks, taken = tmp_path / "task", []

    def sleep(seconds):
        write_states(tasks, "R", "S", looks[len(taken)])
        taken.append(seconds)

    monkeypatch.setattr(distributed, "_TASKS", tasks)
    monkeypatch.setattr(distributed.time, "sleep", sleep)
    ALONE.close()
    assert len(taken) == pauses and not dist.is_initialized()
    # Without a group there is nothing to wait for.
    ALONE.close()
    assert len(taken) == pauses


def test_a_thread_that_never_sleeps_is_not_waited_for_without_end(group, tmp_path, monkeypatch):
    write_states(tmp_path / "task", "R", "R")
    monkeypatch.setattr(distributed, "_TASKS", tmp_path / "task")
    monkeypatch.setattr(distributed, "_LONGEST_WAIT", 0.2)
    ALONE.close()


def test_the_threads_of_a_group_have_the_name_that_is_looked_for(group):
    # A thread takes its name when it starts; the one that has worked has it.
    dist.barrier()
    names = [path.read_text().strip() for path in distributed._TASKS.glob("*/comm")]
    ALONE.close()
    assert distributed._GLOO_WORKER in names or not names
