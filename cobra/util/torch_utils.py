"""Devices, dtypes and seeds."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cobra.util.errors import UserError, lookup

DTYPES = {
    **dict.fromkeys(("fp32", "float32"), torch.float32),
    **dict.fromkeys(("bf16", "bfloat16"), torch.bfloat16),
    **dict.fromkeys(("fp16", "float16"), torch.float16),
}


def bf16_autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Return a context in which matrices are computed in bf16, where that is enabled.

    Without autocast's cache, which would keep a bf16 copy of every block until a pass ends.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for, or the best one at hand: cuda, then mps, then cpu.

    Raises:
        UserError: The name is not a device, or the device is not available on this machine.
    """
    if device is None:
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"{device!r} is not a device; use one of: cuda, cuda:N, mps, cpu") from error
    asked = f"the device {str(device)!r} was asked for, but"
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"{asked} torch {torch.__version__} finds no usable CUDA device on this machine: use --device cpu, or "
                "install a CUDA build of torch and check what nvidia-smi lists"
            )
        if resolved.index is not None and resolved.index >= torch.cuda.device_count():
            raise UserError(f"{asked} there are {torch.cuda.device_count()} CUDA devices: use a smaller index")
    elif resolved.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("the device 'mps' was asked for, but Metal is not available on this machine: use --device cpu")
    elif resolved.type not in ("cuda", "mps", "cpu"):
        raise UserError(f"the device {str(device)!r} is not supported; use one of: cuda, cuda:N, mps, cpu")
    return resolved


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the dtype asked for; by default fp32 on a CPU, fp16 on mps and bf16 on CUDA.

    Raises:
        UserError: The name is unknown.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        return {"cuda": torch.bfloat16, "mps": torch.float16}.get(device.type, torch.float32)
    return lookup(DTYPES, dtype, "the dtype")


def send(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor of numbers on a device, without waiting for what a GPU still has to do; a tensor is copied there.

    `torch.tensor(values, device=device)` waits until a GPU has done everything that was queued before.
    """
    there = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    if device.type == "cuda" and there.device.type == "cpu":
        there = there.pin_memory()
    return there.to(device, dtype, non_blocking=device.type == "cuda")


class Receipt:
    """Values on their way from a device: queued when this is made, before whatever is queued afterwards."""

    def __init__(self, values: Tensor) -> None:
        self._values, self._copied = values, None
        if values.is_cuda:
            # Into pinned memory, so that nothing is waited for here.
            self._values = values.to("cpu", non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(values.device))

    def read(self) -> list[Any]:
        """Wait for the values alone, not for later work, and return them as lists of numbers."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()


def set_global_seed(seed: int) -> None:
    """Seed `random`, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make all random numbers of a step (of dropout, say) follow from seed, step and process; none is to be saved."""
    torch.manual_seed((seed * 1_000_003 + step) * 65_537 + rank)
