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

import torch

from cobra.models.mamba.ops import torch_ops
from cobra.util.errors import UserError, missing_extra

logger = logging.getLogger(__name__)

OPS = ("torch", "numba", "cuda")
VARIABLE = "COBRA_MAMBA_OP"
# Whether numba's loops are used on the CPU where nothing is named.
NUMBA_UNNAMED = False

_chosen: list[str] = []


def ops_for(device: torch.device) -> ModuleType:
    """Return the module whose functions run on `device`: the one that was named, else the fastest that works there.

    The first call for the CPU imports numba and runs a loop of it, about a second; loops are compiled by the first
    process that uses them and kept in the user's cache folder. A warning says once why an installed one is not used.

    Raises:
        UserError: The operations that were named are unknown, not installed, or do not work on this device.
    """
    named = _chosen[-1] if _chosen else os.environ.get(VARIABLE)
    if named:
        return _named(named, device)
    if device.type == "cuda":
        return torch_ops if _cuda_failure(device, warn=True) else _cuda()
    if device.type == "cpu" and NUMBA_UNNAMED and find_spec("numba") and _numba_failure(warn=True) is None:
        return _numba()
    return torch_ops


@contextmanager
def use_op(name: str) -> Iterator[None]:
    """Use the operations of that name, one of `OPS`, for all tensors of the process, backward passes included.

    Raises:
        UserError: There are none of that name, or they are not installed.
    """
    _check(name, "use_op")
    _chosen.append(name)
    try:
        yield
    finally:
        _chosen.remove(name)


def _check(name: str, source: str) -> None:
    if name not in OPS:
        raise UserError(f"{source} names the operations {name!r} of Mamba; there are: {', '.join(OPS)}")
    for op, package, extra in (("numba", "numba", "fast"), ("cuda", "mamba_ssm", "cuda")):
        if name == op and find_spec(package) is None:
            raise missing_extra(package.replace("_", "-"), extra, f"{source} {name}")


def _named(name: str, device: torch.device) -> ModuleType:
    """Return the operations of that name, which must work on the device."""
    source = "use_op" if _chosen else VARIABLE
    _check(name, source)
    if name == "torch":
        return torch_ops
    kind = "cpu" if name == "numba" else "cuda"
    if device.type != kind:
        raise UserError(
            f"{source} names the operations {name!r} of Mamba, which are for tensors on {kind}, and one is on "
            f"{device}: move the model, or choose torch, which works on every device"
        )
    reason = _numba_failure(warn=False) if name == "numba" else _cuda_failure(device, warn=False)
    if reason is not None:
        raise UserError(f"{source} names the operations {name!r} of Mamba, which do not work here: {reason}")
    return _numba() if name == "numba" else _cuda()


def _cuda() -> ModuleType:
    from cobra.models.mamba.ops import cuda_ops

    return cuda_ops


def _cuda_failure(device: torch.device, warn: bool) -> str | None:
    index = device.index if device.index is not None else torch.cuda.current_device()
    reason = _cuda().failure(index)
    if warn and reason is not None:
        _warn(f"The CUDA kernels of Mamba do not work on cuda:{index} ({reason})", "--no-build-isolation", "cuda")
    return reason


def _numba() -> ModuleType:
    from cobra.models.mamba.ops import numba_ops

    return numba_ops


@cache
def _numba_error() -> str | None:
    """Return why the operations of numba do not work, or None where they do."""
    try:
        return _numba().failure()
    except Exception as error:  # noqa: BLE001 - numba refuses versions of numpy by errors of several kinds
        return f"{type(error).__name__}: {error}"


def _numba_failure(warn: bool) -> str | None:
    reason = _numba_error()
    if warn and reason is not None:
        _warn(f"The loops of Mamba that numba compiles do not work here ({reason})", "--upgrade", "fast")
    return reason


@cache
def _warn(what: str, flag: str, extra: str) -> None:
    """Say once that PyTorch's operations are used instead."""
    logger.warning(
        "%s; slower PyTorch operations are used. To install them: pip install %s 'cobra-vlm[%s]'", what, flag, extra
    )
