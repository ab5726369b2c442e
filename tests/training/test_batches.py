"""How many processes read rows, and what is said where the machine has too little shared memory for them."""

from types import SimpleNamespace

import pytest
import torch

from cobra.training import batches
from cobra.training.batches import count_workers
from cobra.util.distributed import World
from cobra.util.errors import UserError

CPU = World(0, 1, torch.device("cpu"))
LENGTHS = [(False, 9), (True, 3), (True, 5)]


def count(asked, monkeypatch, free: int, world: World = CPU, rows=None) -> tuple[int, list[str]]:
    """Count the workers for rows of 1,000 bytes, four at a time, where some bytes are free; return what is said too."""
    read, said = [], []

    class Rows:
        def __getitem__(self, index):
            read.append(index)
            return torch.zeros(250)

    monkeypatch.setattr(batches.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    found = count_workers(
        asked, rows or Rows(), lambda rows: {"rows": {"dino": torch.stack(rows)}}, LENGTHS, 4, world, said.append
    )
    assert read in ([], [2])
    return found, said


@pytest.mark.fault("F3")
def test_shared_memory_is_compared_with_what_the_workers_need(monkeypatch, tmp_path):
    monkeypatch.setattr(batches, "SHARED_MEMORY", tmp_path)
    # Two processes with three workers with three batches of four rows.
    needed = 2 * 3 * 3 * 4 * 1000
    assert count(3, monkeypatch, needed) == (3, [])
    with pytest.raises(UserError, match=r"3 data workers of 2 processes need .*--shm-size 8g.*--num_workers 0"):
        count(3, monkeypatch, needed - 1)
    assert count(0, monkeypatch, 0) == (0, [])


@pytest.mark.fault("F3")
def test_by_default_rows_are_read_without_workers_where_there_is_too_little(monkeypatch, tmp_path):
    monkeypatch.setattr(batches, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(batches.os, "cpu_count", lambda: 16)
    cuda = World(0, 1, torch.device("cuda"))
    assert count(None, monkeypatch, 10**9, cuda) == (4, [])
    found, [said] = count(None, monkeypatch, 10**4, cuda)
    assert found == 0 and "rows are read without workers" in said
    assert count(None, monkeypatch, 0, CPU) == (0, [])


def test_where_there_is_no_such_folder_or_the_row_is_bad_nothing_is_compared(monkeypatch, tmp_path):
    class Bad:
        def __getitem__(self, index):
            raise UserError("no image")

    monkeypatch.setattr(batches, "SHARED_MEMORY", tmp_path)
    assert count(2, monkeypatch, 0, rows=Bad()) == (2, [])
    monkeypatch.setattr(batches, "SHARED_MEMORY", tmp_path / "missing")
    assert count(2, monkeypatch, 0) == (2, [])
