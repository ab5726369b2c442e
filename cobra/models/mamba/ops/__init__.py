"""Mamba's operations, chosen by the device of the tensor at hand.

On GPUs the kernels that Triton compiles, on the CPU the loops that numba compiles, and PyTorch's operations where these
do not work and everywhere else. `COBRA_MAMBA_OP`, or :func:`use_op` in code, names one of `OPS` instead.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from cobra.models.mamba.ops import cuda_ops, torch_ops
from cobra.models.mamba.ops.fallback import WithPyTorch
from cobra.util.errors import UserError, check_known, missing_extra

logger = logging.getLogger(__name__)

OPS = ("torch", "numba", "triton", "cuda")
VARIABLE = "COBRA_MAMBA_OP"

_chosen: list[Any] = []


class Ops(Protocol):
    """Mamba's operations: a module of this package, or an object; `torch_ops` says what each of them does."""

    __name__: str

    @property
    def inner(self) -> Callable[..., Tensor] | None:
        """A whole mixer for training, see :func:`cuda_ops.inner`, or None."""

    @property
    def block_step(self) -> Callable[..., tuple[Tensor, Tensor] | None] | None:
        """A block's step in one call, see :meth:`cobra.models.mamba.mixer.Mixer.block_step`, or None."""

    @property
    def add_norm(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """See :func:`torch_ops.add_norm`."""

    @property
    def causal_conv(self) -> Callable[..., Tensor]:
        """See :func:`torch_ops.causal_conv`."""

    @property
    def causal_conv_step(self) -> Callable[..., Tensor]:
        """See :func:`torch_ops.causal_conv_step`."""

    @property
    def selective_scan(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """See :func:`torch_ops.selective_scan`."""

    @property
    def selective_scan_step(self) -> Callable[..., Tensor]:
        """See :func:`torch_ops.selective_scan_step`."""


def ops_for(device: torch.device) -> Ops:
    """Return the operations for tensors on `device`: those that were named, else the fastest that work there.

    The first call for the CPU may import numba, and that for a GPU Triton; their modules say what that takes. A warning
    says once why something that is installed is not used. Inputs that the fastest ones do not know go to PyTorch's
    operations, with a warning; where they were named, that is an error.

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
        op: A name; or an :class:`Ops`, which is then used on every device.

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


def gpu_failure(device_index: int) -> str | None:
    """Return why the kernels that are used on a GPU by default do not work there, or None where they do."""
    if find_spec("triton") is None:
        return "Triton is not installed; PyTorch's wheels for Linux with CUDA or ROCm bring it"
    try:
        return _triton().failure(device_index)
    except Exception as error:  # noqa: BLE001 - a Triton of another version may fail in any way when it is imported
        return f"{type(error).__name__}: {error}"


def _check(name: str, source: str) -> None:
    """Check that there are operations of a name and that what they need is installed."""
    check_known(name, OPS, f"{source}: the kind of Mamba's operations")
    package = {"torch": "torch", "numba": "numba", "triton": "triton", "cuda": "mamba_ssm"}[name]
    if find_spec(package) is not None:
        return
    if name == "triton":
        raise UserError(f"{source} triton needs Triton, which PyTorch's wheels for Linux with CUDA or ROCm bring")
    raise missing_extra(package.replace("_", "-"), {"numba": "fast", "cuda": "cuda"}[name], f"{source} {name}")


@cache
def _named(name: str, source: str, device: torch.device) -> Ops:
    """Return the operations of a name, which must work on the device."""
    _check(name, source)
    if name == "torch":
        return torch_ops
    kind = "cpu" if name == "numba" else "cuda"
    if name == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return _triton()
    if device.type != kind:
        raise UserError(
            f"{source} names the operations {name!r} of Mamba, which are for tensors on {kind}, and one is on "
            f"{device}: move the model, or choose torch, which works on every device"
        )
    if name == "numba":
        reason = _numba_failure()
    else:
        reason = (gpu_failure if name == "triton" else cuda_ops.failure)(device.index)
    if reason is not None:
        raise UserError(f"{source} names the operations {name!r} of Mamba, which do not work here: {reason}")
    if name == "cuda":
        return cuda_ops
    return _numba() if name == "numba" else _triton()


@cache
def _fastest(device: torch.device) -> Ops:
    """Return the fastest operations that work on a device; tell where those that are installed do not."""
    if device.type == "cuda":
        reason = gpu_failure(device.index)
        if reason is None:
            return WithPyTorch(_triton())
        what, remedy = f"The Triton kernels of Mamba do not work on {device}", f"{VARIABLE}=torch does not try them"
    elif device.type == "cpu" and find_spec("numba") is not None:
        reason = _numba_failure()
        if reason is None:
            return _numba()
        what = "The loops of Mamba that numba compiles do not work here"
        remedy = "To install them: pip install --upgrade 'cobra-vlm[fast]'"
    else:
        return torch_ops
    logger.warning("%s (%s); slower PyTorch operations are used. %s", what, reason, remedy)
    return torch_ops


def _numba() -> Any:
    from cobra.models.mamba.ops import numba_ops

    return numba_ops


def _triton() -> Any:
    from cobra.models.mamba.ops import triton_ops

    return triton_ops


def _numba_failure() -> str | None:
    """Return why the operations of numba do not work, or None where they do."""
    try:
        return _numba().failure()
    except Exception as error:  # noqa: BLE001 - numba refuses versions of numpy by errors of several kinds
        return f"{type(error).__name__}: {error}"
