"""Mamba's operations, chosen by the device of the tensor at hand.

On CUDA the vendor's kernels, on the CPU the loops that numba compiles, and PyTorch's operations where these are not
installed and everywhere else. `COBRA_MAMBA_OP`, or :func:`use_op` in code, names one of `OPS` instead.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from cobra.models.mamba.ops import cuda_ops, torch_ops
from cobra.util.errors import UserError, check_known, missing_extra

logger = logging.getLogger(__name__)

OPS = ("torch", "numba", "cuda")
VARIABLE = "COBRA_MAMBA_OP"

_chosen: list[str | Any] = []


def ops_for(device: torch.device) -> ModuleType:
    """Return the module whose functions run on `device`: the one that was named, else the fastest that works there.

    The first call for the CPU may import numba; `numba_ops` says what that takes. A warning says once why something
    that is installed is not used.

    Raises:
        UserError: The operations that were named are unknown, not installed, or do not work on this device.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if _chosen:
        return _named(_chosen[-1], "use_op", device) if isinstance(_chosen[-1], str) else _chosen[-1]
    name = os.environ.get(VARIABLE)
    return _named(name, VARIABLE, device) if name else _fastest(device)


@contextmanager
def use_op(op: str | Any) -> Iterator[None]:
    """Use the operations of that name, one of `OPS`, for all tensors of the process, backward passes included.

    Args:
        op: A name; or an object with the functions of `torch_ops`, which is then used on every device.

    Raises:
        UserError: There are none of that name, or they are not installed.
    """
    if isinstance(op, str):
        _check(op, "use_op")
    _chosen.append(op)
    try:
        yield
    finally:
        _chosen.remove(op)


def _check(name: str, source: str) -> None:
    """Check that there are operations of a name and that what they need is installed."""
    check_known(name, OPS, f"{source}: the kind of Mamba's operations")
    package, extra = {"torch": ("torch", ""), "numba": ("numba", "fast"), "cuda": ("mamba_ssm", "cuda")}[name]
    if find_spec(package) is None:
        raise missing_extra(package.replace("_", "-"), extra, f"{source} {name}")


@cache
def _named(name: str, source: str, device: torch.device) -> ModuleType:
    """Return the operations of a name, which must work on the device."""
    _check(name, source)
    if name == "torch":
        return torch_ops
    kind = "cpu" if name == "numba" else "cuda"
    if device.type != kind:
        raise UserError(
            f"{source} names the operations {name!r} of Mamba, which are for tensors on {kind}, and one is on "
            f"{device}: move the model, or choose torch, which works on every device"
        )
    reason = _numba_failure() if name == "numba" else cuda_ops.failure(device.index)
    if reason is not None:
        raise UserError(f"{source} names the operations {name!r} of Mamba, which do not work here: {reason}")
    return _numba() if name == "numba" else cuda_ops


@cache
def _fastest(device: torch.device) -> ModuleType:
    """Return the fastest operations that work on a device; tell where those that are installed do not."""
    if device.type == "cuda":
        reason = cuda_ops.failure(device.index)
        if reason is None:
            return cuda_ops
        what, flag, extra = f"The CUDA kernels of Mamba do not work on {device}", "--no-build-isolation", "cuda"
    elif device.type == "cpu" and find_spec("numba") is not None:
        reason = _numba_failure()
        if reason is None:
            return _numba()
        what, flag, extra = "The loops of Mamba that numba compiles do not work here", "--upgrade", "fast"
    else:
        return torch_ops
    logger.warning(
        "%s (%s); slower PyTorch operations are used. To install them: pip install %s 'cobra-vlm[%s]'",
        *(what, reason, flag, extra),
    )
    return torch_ops


def _numba() -> ModuleType:
    from cobra.models.mamba.ops import numba_ops

    return numba_ops


def _numba_failure() -> str | None:
    """Return why the operations of numba do not work, or None where they do."""
    try:
        return _numba().failure()
    except Exception as error:  # noqa: BLE001 - numba refuses versions of numpy by errors of several kinds
        return f"{type(error).__name__}: {error}"
