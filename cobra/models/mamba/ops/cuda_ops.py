"""Mamba's operations by the vendor kernels of mamba-ssm and causal-conv1d (extra `cuda`); the seam is kept thin.

Functions take and return what their namesakes in `torch_ops` do. The kernels want (batch, width, time), have no
initial state and no notion of padding: layout, continuation and padding are added here.
"""

import sys
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cobra.models.mamba.ops import torch_ops
from cobra.models.mamba.ops.probe import probe

block_step = None
add_norm = torch_ops.add_norm


@cache
def kernels() -> Any:
    """Return the vendor's functions by name, imported once; tests substitute stand-ins of the same signatures."""
    from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    return SimpleNamespace(
        causal_conv1d_fn=causal_conv1d_fn,
        causal_conv1d_update=causal_conv1d_update,
        mamba_inner_fn=mamba_inner_fn,
        selective_scan_fn=selective_scan_fn,
        selective_state_update=selective_state_update,
    )


@cache
def failure(device_index: int) -> str | None:
    """Return why the kernels cannot be used on a device, or None where they work.

    They are called and compared, not only imported: a build without the Mamba-1 extension raises at every call.
    """
    device = torch.device("cuda", device_index)
    try:
        inner(torch.zeros(1, 4, 16, device=device), _probe_mixer(device))
        return probe(sys.modules[__name__], device)
    except Exception as error:  # noqa: BLE001 - whatever a foreign binary raises means that it is of no use
        return f"{type(error).__name__}: {error}"


def _probe_mixer(device: torch.device) -> Any:
    """Return the smallest mixer's worth of weights: width 8, state 4, rank 2."""
    mixer = nn.Module()
    mixer.conv1d = nn.Conv1d(8, 8, 4, groups=8)
    mixer.x_proj = nn.Linear(8, 2 + 2 * 4, bias=False)
    mixer.dt_proj = nn.Linear(2, 8)
    mixer.out_proj = nn.Linear(8, 4, bias=False)
    mixer.A_log, mixer.D = nn.Parameter(torch.zeros(8, 4)), nn.Parameter(torch.ones(8))
    return mixer.to(device)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor | None) -> Tensor:
    """See :func:`torch_ops.causal_conv`."""
    inputs = x.transpose(1, 2)
    if window is not None:
        # The last inputs go in front and their outputs are dropped: exact, and no layout of the kernel's is needed.
        inputs = torch.cat([window[:, :, 1:].to(x.dtype), inputs], dim=2)
    out = kernels().causal_conv1d_fn(inputs, weight.to(x.dtype), _cast(bias, x.dtype), activation="silu")
    return out[:, :, out.shape[2] - x.shape[1] :].transpose(1, 2)


def causal_conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor) -> Tensor:
    """See :func:`torch_ops.causal_conv_step`; `window` is shifted in place by the kernel."""
    dtype = window.dtype
    out = kernels().causal_conv1d_update(x.to(dtype), window, weight.to(dtype), _cast(bias, dtype), activation="silu")
    return out.to(x.dtype)


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
    A = torch_ops.negative_rates(A_log)
    inputs, steps, drive, read, gate = (tensor.transpose(1, 2).contiguous() for tensor in (u, dt, B, C, z))
    if state is None and valid is None:
        y, last = kernels().selective_scan_fn(
            inputs, steps, A, drive, read, D, gate, dt_bias, delta_softplus=True, return_last_state=True
        )
        return y.transpose(1, 2), last
    delta = F.softplus(dt.float() + dt_bias)
    if valid is not None:
        delta = delta * valid.unsqueeze(-1)
    steps = delta.transpose(1, 2).contiguous()
    y, last = kernels().selective_scan_fn(
        inputs.float(), steps, A, drive.float(), read.float(), D, return_last_state=True
    )
    y = y.transpose(1, 2)
    if state is not None:
        carried, tail = _carry_state(delta, A, C.float(), state.float())
        y, last = y + carried, last + tail
    return (y * F.silu(z.float())).to(u.dtype), last


def _carry_state(delta: Tensor, A: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return what an initial state adds to the outputs and to the last state: the recurrence is linear in it."""
    # No exponent is above 0, so nothing overflows; pieces of time bound the memory.
    elapsed = delta.cumsum(1)
    carried = [
        torch.einsum("btn,btdn,bdn->btd", read, torch.exp(piece.unsqueeze(-1) * A), state)
        for piece, read in zip(elapsed.split(64, dim=1), C.split(64, dim=1), strict=True)
    ]
    return torch.cat(carried, dim=1), torch.exp(elapsed[:, -1].unsqueeze(-1) * A) * state


def selective_scan_step(
    u: Tensor, dt: Tensor, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor, state: Tensor
) -> Tensor:
    """See :func:`torch_ops.selective_scan_step`; `state` is updated in place by the kernel."""
    A = torch_ops.negative_rates(A_log)
    return kernels().selective_state_update(state, u, dt, A, B, C, D, z=z, dt_bias=dt_bias, dt_softplus=True)


def inner(xz: Tensor, mixer: Any) -> Tensor:
    """The whole mixer between its input and output projections, fused with the latter; for training, unpadded.

    Args:
        xz: Output of `in_proj` (batch, time, 2 * width).
        mixer: The :class:`cobra.models.mamba.mamba1.Mamba1Mixer` whose weights are used.

    Returns:
        (batch, time, d_model).
    """
    conv, dt_proj, out_proj = mixer.conv1d, mixer.dt_proj, mixer.out_proj
    weights = (conv.weight, conv.bias, mixer.x_proj.weight, dt_proj.weight, out_proj.weight, out_proj.bias)
    inputs, A, bias = xz.transpose(1, 2).contiguous(), torch_ops.negative_rates(mixer.A_log), dt_proj.bias.float()
    return kernels().mamba_inner_fn(inputs, *weights, A, D=mixer.D.float(), delta_bias=bias, delta_softplus=True)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
