"""Mamba's operations by loops that numba compiles (extra `fast`), for tensors of the CPU; several times `torch_ops`.

Functions take and return what their namesakes in `torch_ops` do. They compute in fp32; fp64 goes to `torch_ops`. The
scan keeps its inputs and one state every `CHUNK` positions for the backward pass; softplus, skip and gate are parts of
both passes. Results do not depend on the number of threads, which is PyTorch's.

A process takes 0.7 s and 110 MB to import numba and read the compiled loops; the first one on a machine takes 11 s to
compile them (forward 3, backward 4, block steps 4).
"""

from array import array
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cobra.models.mamba.ops import torch_ops
from cobra.models.mamba.ops.numba_block import block_step as kernel_step
from cobra.models.mamba.ops.numba_block import scratch_numbers
from cobra.models.mamba.ops.numba_conv import conv_backward, conv_forward, conv_step
from cobra.models.mamba.ops.numba_lanes import BYTES, LANES, LOG2_E
from cobra.models.mamba.ops.numba_scan import scan_backward, scan_forward, scan_step

# Positions between two states that are kept.
CHUNK = 16
# Numbers of a job for which other threads are worth waking.
_NUMBERS_FOR_THREADS = 32_768
# Blocks of channels that one task of the backward pass takes, and the tasks that are to be left for threads.
_GROUP, _TASKS = 4, 32
# Numbers of in_proj up to which a thread alone is as fast as several that have to be called forty times.
_SMALL_MATRIX = 2**20

inner = None
add_norm = torch_ops.add_norm


@cache
def failure() -> str | None:
    """Return why these operations do not work here, or None where they do: one is compiled and run."""
    try:
        out = causal_conv_step(torch.ones(1, LANES), torch.ones(LANES, 2), None, torch.ones(1, LANES, 2))
    except Exception as error:  # noqa: BLE001 - whatever a compiler raises means that it is of no use
        return f"{type(error).__name__}: {error}"
    return None if torch.allclose(out, F.silu(torch.full_like(out, 2.0))) else "it computes wrong numbers"


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor | None) -> Tensor:
    """See :func:`torch_ops.causal_conv`."""
    if x.dtype == torch.float64:
        return torch_ops.causal_conv(x, weight, bias, window)
    batch, _, width = x.shape
    front = x.new_zeros(batch, weight.shape[1] - 1, width) if window is None else window[:, :, 1:].transpose(1, 2)
    offset = x.new_zeros(width) if bias is None else bias
    out = _Conv.apply(*(_blocks(tensor) for tensor in (x, weight.t(), offset, front)))
    return out[:, :, :width].to(x.dtype)


def causal_conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor) -> Tensor:
    """See :func:`torch_ops.causal_conv_step`."""
    batch, width, taps = window.shape
    if width % LANES or not _is_plain(window, weight):
        return torch_ops.causal_conv_step(x, weight, bias, window)
    inputs = _blocks(x)
    offset = inputs.new_zeros(width) if bias is None else _blocks(bias)
    out = inputs.new_empty(batch, width)
    sizes = {"blocks": width // LANES, "taps": taps}
    places = _rows(x=inputs) | _starts(window=window, weight=weight, bias=offset, out=out)
    conv_step.run(batch * width // LANES, _threads(window.numel()), places | sizes)
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
    if u.dtype == torch.float64:
        return torch_ops.selective_scan(u, dt, A_log, B, C, D, z, dt_bias, state, valid)
    batch, _, width = u.shape
    A = torch_ops.negative_rates(A_log)
    before = u.new_zeros(batch, *A.shape, dtype=torch.float32) if state is None else state
    mask = None if valid is None else valid.float().contiguous()
    over_width = [_blocks(tensor) for tensor in (u, dt, z, D, dt_bias, A.t(), before.transpose(1, 2))]
    over_states = [torch_ops.unit_stride(tensor.float()) for tensor in (B, C)]
    y, last = _Scan.apply(*over_width, *over_states, mask, torch.is_grad_enabled())
    return y[:, :, :width].to(u.dtype), last[:, :, :width].transpose(1, 2)


def selective_scan_step(
    u: Tensor, dt: Tensor, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor, state: Tensor
) -> Tensor:
    """See :func:`torch_ops.selective_scan_step`."""
    batch, width, states = state.shape
    if width % LANES or not _is_plain(state, A_log):
        return torch_ops.selective_scan_step(u, dt, A_log, B, C, D, z, dt_bias, state)
    rows = {name: torch_ops.unit_stride(tensor.float()) for name, tensor in dict(u=u, dt=dt, z=z, B=B, C=C).items()}
    A, threads = torch_ops.negative_rates(A_log), _threads(state.numel())
    out, scratch = A.new_empty(batch, width), A.new_empty(threads, (2 + 2 * states) * LANES)
    D, bias = _blocks(D), _blocks(dt_bias)
    places = _rows(**rows) | _starts(A=A, D=D, bias=bias, state=state, out=out, scratch=scratch)
    sizes = {"blocks": width // LANES, "states": states, "scratch_size": (2 + 2 * states) * BYTES}
    scan_step.run(batch * width // LANES, threads, places | sizes)
    return out.to(u.dtype)


def block_step(
    mixer: Any, norm: Any, hidden: Tensor, residual: Tensor | None, state: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Do what :meth:`Mamba1Mixer.block_step` does, where weights are small, fp32 and nothing but weights.

    None, with nothing done, where they are not: then threads or other layers' code are worth their calls.
    """
    batch, _, d_model = hidden.shape
    conv, in_proj, x_proj, dt_proj, out_proj = mixer.conv1d, mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj
    matrix, scale, A_log = in_proj.weight, norm.weight, mixer.A_log
    width, states = A_log.shape
    if matrix.numel() > _SMALL_MATRIX or d_model % LANES or width % LANES or len(scale) != d_model:
        return None
    if any(type(layer) is not nn.Linear for layer in (in_proj, x_proj, dt_proj, out_proj)):
        return None
    tensors = {
        **{"hidden": hidden, "residual": residual, "norm": scale, "in_proj": matrix, "in_bias": in_proj.bias},
        **{"conv": conv.weight, "conv_bias": conv.bias, "x_proj": x_proj.weight, "dt_proj": dt_proj.weight},
        **{"dt_bias": dt_proj.bias, "A_log": A_log, "D": mixer.D, "out_proj": out_proj.weight},
        **{"out_bias": out_proj.bias, "window": state["conv"], "state": state["ssm"]},
    }
    if not _is_plain(*tensors.values()):
        return None
    reads, threads = len(tensors["x_proj"]), min(batch, _threads(batch * matrix.numel()))
    rows = -(-batch // threads)
    size = scratch_numbers(rows, d_model, width, reads, states)
    tensors["scratch"], eps = hidden.new_empty(threads * size), array("f", [norm.eps])
    tensors["out"], tensors["stream"] = out, stream = torch.empty_like(hidden), torch.empty_like(hidden)
    sizes = {
        **{"batch": batch, "rows": rows, "d_model": d_model, "width": width, "rank": reads - 2 * states},
        **{"states": states, "taps": state["conv"].shape[2], "eps": eps.buffer_info()[0], "scratch_size": 4 * size},
    }
    kernel_step.run(-(-batch // rows), threads, _starts(**tensors) | sizes)
    return out, stream


class _Conv(torch.autograd.Function):
    """SiLU of the convolution; x (batch, time, width), weight (taps, width), front (batch, taps - 1, width), fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, front: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias, front)
        out = x.new_empty(x.shape)
        blocks = x.shape[2] // LANES
        conv_forward.run(len(x) * blocks, _threads(x.numel()), _conv_job(x, weight, bias, front) | _starts(out=out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight, bias, front = ctx.saved_tensors
        grad = torch_ops.unit_stride(grad)
        dx, d_front = x.new_empty(x.shape), torch.empty_like(front)
        d_weight, d_bias = x.new_zeros(len(x), *weight.shape), x.new_zeros(len(x), *bias.shape)
        job = _conv_job(x, weight, bias, front) | _rows(grad=grad)
        job |= _starts(dx=dx, d_front=d_front, d_weight=d_weight, d_bias=d_bias)
        conv_backward.run(len(x) * x.shape[2] // LANES, _threads(x.numel()), job)
        return dx, d_weight.sum(0), d_bias.sum(0), d_front


def _conv_job(x: Tensor, weight: Tensor, bias: Tensor, front: Tensor) -> dict[str, int]:
    sizes = {"steps": x.shape[1], "blocks": x.shape[2] // LANES, "taps": len(weight)}
    return sizes | _rows(x=x) | _starts(weight=weight, bias=bias, front=front)


class _Scan(torch.autograd.Function):
    """The gated scan of `torch_ops.selective_scan` in fp32, with whole blocks of channels.

    u, dt, z (batch, time, width); D, bias (width,); A (state, width); state (batch, state, width);
    B, C (batch, time, state); mask (batch, time) or None; then True where gradients may be asked for.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        u, dt, z, D, bias, A, state, B, C, mask, is_training = inputs
        batch, steps, width = u.shape
        blocks, states = width // LANES, len(A)
        rates, h, y = _split(A * LOG2_E), _split(state), u.new_empty(u.shape)
        chunks = -(-steps // CHUNK) if is_training and any(ctx.needs_input_grad) else 0
        starts = u.new_empty(batch, blocks, chunks, states, LANES)
        kept = (u, dt, z, D, bias, rates, B, C, mask, starts)
        threads = _threads(y.numel() * states)
        scratch = u.new_empty(threads, CHUNK * LANES)
        job = _scan_job(*kept, scratch)
        scan_forward.run(batch * blocks, threads, job | _starts(out=y, state=h))
        if chunks:
            ctx.save_for_backward(*kept)
        return y, _join(h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        u, *_, B, _, _, _ = kept
        batch, steps, width = u.shape
        blocks, states = width // LANES, B.shape[2]
        group = max(1, min(_GROUP, batch * blocks // _TASKS))
        groups = -(-blocks // group)
        grad, carry = torch_ops.unit_stride(grad), _split(grad_last)
        du, ddt, dz = (torch.empty(u.shape) for _ in range(3))
        d_rates, d_rows = torch.zeros_like(carry), u.new_zeros(2, batch, width)
        d_reads = u.new_empty(2, groups, batch, steps, states)
        threads = _threads(u.numel() * states)
        scratch = u.new_empty(threads, ((4 * CHUNK + 1) * states + 2 * CHUNK) * LANES)
        job = _scan_job(*kept, scratch) | _rows(grad=grad)
        job |= _starts(du=du, ddt=ddt, dz=dz, dB=d_reads[0], dC=d_reads[1], carry=carry)
        job |= _starts(d_rates=d_rates, dD=d_rows[0], d_bias=d_rows[1])
        scan_backward.run(batch * groups, threads, job | {"group": group})
        dD, d_bias = d_rows.sum(1)
        dB, dC = d_reads.sum(1)
        return du, ddt, dz, dD, d_bias, _join(d_rates.sum(0)), _join(carry), dB, dC, None, None


def _scan_job(*tensors: Any) -> dict[str, int]:
    """Return what both passes tell their kernels; the tensors are those that are kept between them, and scratch."""
    u, dt, z, D, bias, rates, B, C, mask, starts, scratch = tensors
    sizes = {"steps": u.shape[1], "blocks": u.shape[2] // LANES, "states": B.shape[2], "chunk": CHUNK}
    sizes["scratch_size"] = 4 * scratch.shape[1]
    kept = starts if starts.numel() else None
    places = _starts(D=D, bias=bias, rates=rates, valid=mask, starts=kept, scratch=scratch)
    return sizes | places | _rows(u=u, dt=dt, z=z, B=B, C=C)


def _blocks(tensor: Tensor) -> Tensor:
    """Return a tensor of channels (..., width) in fp32, with zeros up to a whole block of channels."""
    tensor = tensor.float()
    missing = -tensor.shape[-1] % LANES
    return F.pad(tensor, (0, missing)) if missing else torch_ops.unit_stride(tensor)


def _split(tensor: Tensor) -> Tensor:
    """Copy (..., state, width) as (..., block, state, lane)."""
    blocked = tensor.unflatten(-1, (-1, LANES)).movedim(-2, -3)
    return blocked.clone(memory_format=torch.contiguous_format)


def _join(tensor: Tensor) -> Tensor:
    """Undo :func:`_split`."""
    return tensor.movedim(-3, -2).flatten(-2)


def _is_plain(*tensors: Tensor | None) -> bool:
    """Return True if tensors are such that a kernel may read them as they lie."""
    return all(tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous()) for tensor in tensors)


def _threads(numbers: int) -> int:
    return torch.get_num_threads() if numbers >= _NUMBERS_FOR_THREADS else 1


def _starts(**tensors: Tensor | None) -> dict[str, int]:
    """Return where contiguous tensors lie, and 0 for None."""
    return {name: 0 if tensor is None else _address(tensor) for name, tensor in tensors.items()}


def _rows(**tensors: Tensor) -> dict[str, int]:
    """Return where tensors (batch, width) or (batch, time, width) lie, and their strides in bytes."""
    places = _starts(**tensors)
    for name, tensor in tensors.items():
        for axis, stride in zip(("row", "step"), tensor.stride()[:-1], strict=False):
            places[f"{name}_{axis}"] = 4 * stride
    return places


def _address(tensor: Tensor) -> int:
    if not tensor.is_cpu:
        raise RuntimeError(f"expected all tensors to be on the CPU, but one is on {tensor.device}")
    return tensor.data_ptr()
