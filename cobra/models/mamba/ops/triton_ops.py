"""Mamba's operations by kernels of this project's own, which Triton compiles for NVIDIA's and AMD's GPUs.

Functions take and return what their namesakes in `torch_ops` do, and refuse what the kernels do not know by a
UserError. Triton comes with PyTorch's wheels for Linux; it compiles its driver by a C compiler at the first launch on a
machine. Results have the same bits every time: no kernel adds by atomics, and sums over programs have a fixed order.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from functools import cache
from subprocess import CalledProcessError
from typing import Any

import torch
import triton
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cobra.models.mamba.ops import torch_ops, triton_conv, triton_norm, triton_selective_scan, triton_step
from cobra.models.mamba.ops.probe import probe
from cobra.util.errors import UserError

# The oldest Triton that is tried; the kernels were compiled and interpreted with 3.8, and the probe decides about
# others. Then the oldest cards of NVIDIA that it compiles for.
_OLDEST_TRITON = (3, 7)
_OLDEST_CARD = (7, 5)
# Taps, and states a channel, that the kernels are unrolled for without spilling registers.
_MOST_TAPS = 8
STATES = (4, 8, 16)
# Numbers of a row, which is addressed by 32 bits: 200,000 steps of cobra+3b.
_MOST_NUMBERS = 2**31

inner = None


@cache
def failure(device_index: int) -> str | None:
    """Return why these operations cannot be used on a device, or None where they work.

    They are run once, in bf16 with gradients, and their results compared to PyTorch's: a kernel that computes something
    else is worse than none. The first time on a machine they are compiled for that, in forty seconds.
    """
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < _OLDEST_TRITON:
        return f"Triton is {triton.__version__}, and at least {'.'.join(map(str, _OLDEST_TRITON))} is needed"
    device = torch.device("cuda", device_index)
    try:
        if torch.version.hip is None and (card := torch.cuda.get_device_capability(device)) < _OLDEST_CARD:
            name = torch.cuda.get_device_name(device)
            return f"{name} has compute capability {card[0]}.{card[1]}, and Triton needs at least 7.5"
        return probe(sys.modules[__name__], device)
    except Exception as error:  # noqa: BLE001 - whatever a compiler or a driver raises means that they are of no use
        if not has_compiler():
            return "Triton needs a C compiler for its first launch: install gcc or clang, or name one in CC"
        if isinstance(error, CalledProcessError):
            return "Triton could not compile its driver: Python's headers may be missing (apt install python3-dev)"
        return f"{type(error).__name__}: {error}"


def has_compiler() -> bool:
    """Return True if Triton will find the C compiler that it builds its driver with."""
    return bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


def add_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See :func:`torch_ops.add_norm`."""
    _check(hidden, residual, weight)
    return triton_norm.add_norm(hidden, residual, weight.contiguous(), eps, dtype)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor | None) -> Tensor:
    """See :func:`torch_ops.causal_conv`."""
    _check(x, weight, bias, window)
    _check_taps(weight)
    if x.shape[1] * x.stride(1) >= _MOST_NUMBERS:
        raise UserError(f"a row of {x.shape[1]:,} steps is longer than the Triton kernels of Mamba can address")
    window = None if window is None else window.contiguous()
    return triton_conv.causal_conv(torch_ops.unit_stride(x), weight.contiguous(), bias, window)


def causal_conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor) -> Tensor:
    """See :func:`torch_ops.causal_conv_step`."""
    _check(x, weight, bias, window)
    _check_taps(weight)
    if _needs_gradient(x, weight, bias, window):
        return torch_ops.causal_conv_step(x, weight, bias, window)
    _check_dense(window)
    return triton_conv.causal_conv_step(torch_ops.unit_stride(x), weight.contiguous(), bias, window)


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A_log: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    state: Tensor | None,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See :func:`torch_ops.selective_scan`."""
    _check(u, dt, A_log, B, C, D, z, dt_bias, state, valid)
    _check_states(A_log)
    u, dt, B, C, z = (torch_ops.unit_stride(x) for x in (u, dt, B, C, z))
    A_log, D, dt_bias = A_log.contiguous(), D.contiguous(), dt_bias.contiguous()
    state = None if state is None else state.contiguous()
    valid = None if valid is None else valid.contiguous().view(torch.uint8)
    return triton_selective_scan.selective_scan(u, dt, A_log, B, C, D, z, dt_bias, state, valid)


def selective_scan_step(
    u: Tensor, dt: Tensor, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor, state: Tensor
) -> Tensor:
    """See :func:`torch_ops.selective_scan_step`."""
    tensors = (u, dt, A_log, B, C, D, z, dt_bias, state)
    _check(*tensors)
    _check_states(A_log)
    if _needs_gradient(*tensors):
        return torch_ops.selective_scan_step(*tensors)
    _check_dense(state)
    u, dt, B, C, z, D, dt_bias = (torch_ops.unit_stride(tensor) for tensor in (u, dt, B, C, z, D, dt_bias))
    return triton_step.selective_scan_step(u, dt, A_log.contiguous(), B, C, D, z, dt_bias, state)


def block_step(
    mixer: Any, norm: Any, hidden: Tensor, residual: Tensor | None, state: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Do what :meth:`Mamba1Mixer.block_step` does in six launches: three matrix products, norm, convolution and scan.

    None, with nothing done, where a layer is more than its weights, as one with an adapter is. The stream of the first
    block is fp32.
    """
    conv, dt_proj, window, h = mixer.conv1d, mixer.dt_proj, state["conv"], state["ssm"]
    if any(type(layer) is not nn.Linear for layer in (mixer.in_proj, mixer.x_proj, dt_proj, mixer.out_proj)):
        return None
    weights = (dt_proj.weight, dt_proj.bias, mixer.A_log, mixer.D)
    _check(hidden, residual, norm.weight, conv.weight, conv.bias, *weights, window, h)
    _check_states(mixer.A_log)
    _check_taps(window)
    _check_dense(window, h)
    dtype = torch_ops.wide(hidden[:0]).dtype if residual is None else torch.promote_types(hidden.dtype, residual.dtype)
    normed, stream = triton_norm.add_norm(hidden, residual, norm.weight, norm.eps, dtype)
    x, z = mixer.in_proj(normed.squeeze(1)).chunk(2, -1)
    u = triton_conv.causal_conv_step(x, conv.weight.squeeze(1), conv.bias, window)
    y = triton_step.projected_scan_step(u, mixer.x_proj(u), *weights, z, h)
    return mixer.out_proj(y).unsqueeze(1), stream


def _check(*tensors: Tensor | None) -> None:
    """Check that a kernel can read the tensors: plain ones, on one device.

    Raises:
        UserError: They are not; it says what was found.
    """
    there = [tensor for tensor in tensors if tensor is not None]
    if any(isinstance(tensor, DTensor) for tensor in there):
        raise UserError(
            "a tensor that is spread over processes (DTensor) has reached a Triton kernel of Mamba, which reads whole "
            "ones: gather it first, as FSDP does for its blocks"
        )
    devices = sorted({str(tensor.device) for tensor in there})
    if len(devices) > 1:
        raise UserError(
            f"tensors of one operation of Mamba are on {' and '.join(devices)}: a Triton kernel reads those of one "
            "device; move the model and its inputs to it"
        )


def _check_taps(weight: Tensor) -> None:
    if weight.shape[-1] > _MOST_TAPS:
        raise UserError(f"the Triton kernels of Mamba convolve at most {_MOST_TAPS} taps, not {weight.shape[-1]}")


def _check_states(A_log: Tensor) -> None:
    if A_log.shape[1] not in STATES:
        known = ", ".join(map(str, STATES))
        raise UserError(f"the Triton kernels of Mamba know {known} states a channel, not {A_log.shape[1]}")


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _check_dense(*tensors: Tensor) -> None:
    """Check that tensors which a kernel changes in place are dense."""
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise UserError(
            "a window or state of a step of Mamba is not contiguous: the Triton kernels change dense ones only"
        )
