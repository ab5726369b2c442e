"""Several processes of one world, for tests of what they do together."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from forkserver import forkserver

from cobra.util.distributed import World

TIMEOUT = timedelta(minutes=2)


def _join(rank: int, size: int, folder: Path, work: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    store = dist.FileStore(str(folder / "rendezvous"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    world = World(rank, size, torch.device("cpu"))
    work(world, *arguments)
    world.close()


def together(size: int, folder: Path, work: Callable[..., None], *arguments: object) -> None:
    """Call a module's function in each of `size` new processes with its `World` and the arguments."""
    start_method = forkserver().get_start_method()
    mp.start_processes(_join, (size, folder, work, arguments), nprocs=size, start_method=start_method)
