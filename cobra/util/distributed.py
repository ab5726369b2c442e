"""Processes of one run: started by torchrun, or a single one."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cobra.util.errors import SharedError, UserError, file_problem
from cobra.util.lock import Hold, hold
from cobra.util.parallel import end_with_parent
from cobra.util.torch_utils import resolve_device

T = TypeVar("T")

_TASKS = Path("/proc/self/task")
_GLOO_WORKER = "pt_gloo_runloop"
_PAUSE = 0.02
_LONGEST_WAIT = 5.0


@dataclass(frozen=True)
class World:
    """This process, with its device, among the `size` that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the process that writes and prints."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; `value` is changed in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def max(self, value: Tensor) -> Tensor:
        """Return the largest of a tensor's values over all processes; `value` is changed in place."""
        if self.size > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in the order of the processes; values go by pickle between own processes."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def on_main(self, work: Callable[[], T]) -> T | None:
        """Do something on the main process alone while the others wait; return what it returns, elsewhere None.

        Raises:
            SharedError: It has failed with a UserError, or for a file (a full disk, say); raised on every process.
        """
        value, problem = None, None
        if self.is_main:
            try:
                value = work()
            except (UserError, OSError) as error:
                problem = str(error) if isinstance(error, UserError) else file_problem(error)
                if problem is None:
                    raise
        [problem, *_] = self.gather(problem)
        if problem is not None:
            raise SharedError(problem)
        return value

    def close(self) -> None:
        """Leave the process group; the process can end after it.

        gloo's threads outlive their group and let go of a collective's tensors some time after it has returned. A
        thread that asks for the interpreter for that while it is ending aborts the process (pytorch/pytorch#190489).
        """
        if dist.is_initialized():
            dist.destroy_process_group()
            _let_workers_rest()


def _let_workers_rest() -> None:
    """Wait, without holding the interpreter, until gloo's threads are asleep at three looks in a row, or 5 s."""
    quiet, end = 0, time.monotonic() + _LONGEST_WAIT
    while quiet < 3 and time.monotonic() < end:
        time.sleep(_PAUSE)
        quiet = 0 if _workers_run() else quiet + 1


def _workers_run() -> bool:
    """Return True if a thread of gloo is running or wants to; False where the system does not show its threads."""
    for status in _TASKS.glob("*/stat"):
        with suppress(OSError):  # The thread has ended.
            # `number (name) state ...`, see proc(5).
            name, _, rest = status.read_text().partition("(")[2].rpartition(")")
            if name == _GLOO_WORKER and rest.split()[0] != "S":
                return True
    return False


def join_world(device: str | None = None) -> World:
    """Join the processes that torchrun has started, or be the only one.

    The device is `cuda`, where each process takes the GPU of its local rank, `mps` or `cpu`; None is the best at hand.

    Raises:
        UserError: The device is not there, or there are fewer GPUs than processes on this machine.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # torchrun's processes outlive it when it is killed, and would go on writing beside those of the next start.
        end_with_parent(os.getppid())
    target = resolve_device(device)
    if target.type == "cuda":
        # Alone, the GPU that was asked for; of several processes, each the one of its local rank.
        local = target.index if size == 1 and target.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UserError(
                f"there are {torch.cuda.device_count()} GPUs for {os.environ.get('LOCAL_WORLD_SIZE', '1')} processes "
                "on this machine: start torchrun with --nproc-per-node equal to the number of GPUs, or use --device cpu"
            )
        target = torch.device("cuda", local)
        torch.cuda.set_device(target)
    if size > 1 and not dist.is_initialized():
        # gloo stays beside nccl: checkpoints are gathered through CPU tensors.
        dist.init_process_group("cpu:gloo,cuda:nccl" if target.type == "cuda" else "gloo")
    return World(rank, size, target)


@contextmanager
def hold_together(world: World, folder: Path, what: str) -> Iterator[Hold | None]:
    """Let the main process :func:`hold` a folder for all processes of a world; each has to call it.

    Raises:
        SharedError: Somebody is there, or the folder takes no files.
    """
    with ExitStack() as stack:
        yield world.on_main(lambda: stack.enter_context(hold(folder, what)))
