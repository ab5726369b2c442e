"""Mamba's operations in plain PyTorch, on any device: exact, threaded by PyTorch, and frugal with memory.

The scan keeps only u, dt, A, B, C and one state a chunk for the backward pass, and recomputes the rest chunk by chunk,
so neither pass ever holds a (batch, time, width, state) tensor. exp(dt * A) is formed step by step and never as a
difference of cumulative sums, which overflows for large dt.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of one chunk's buffer: 2 MB of fp32, which stay in the cache; with fewer the calls would take the time.
_CHUNK_ELEMENTS = 524_288
# At least so many steps a chunk, so that the kept states stay a small share of the inputs.
_MIN_CHUNK_STEPS = 8

# exp(x) is computed as 2^(x log2 e), for which PyTorch takes half the time on a CPU.
_LOG2_E = math.log2(math.e)

# What only other operations have: a mixer, and a step of a block, in one call.
inner = None
block_step = None


def add_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Add to the residual stream and normalise it by its root mean square, computed in fp32 or wider.

    Args:
        hidden: Output of the block before (..., width).
        residual: The stream up to there (..., width); None is zeros.
        weight: Scales (width,).
        eps: Added to the mean square.
        dtype: That of the new stream.

    Returns:
        The normalised stream in the weight's dtype, and the stream, both (..., width).
    """
    stream = (hidden if residual is None else hidden + residual).to(dtype)
    return F.rms_norm(stream, weight.shape, weight.to(dtype), eps).to(weight.dtype), stream


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor | None) -> Tensor:
    """Depthwise causal convolution over time, followed by SiLU.

    Args:
        x: Inputs (batch, time, width).
        weight: Taps (width, kernel); the last one multiplies the current input.
        bias: (width,) or None.
        window: The last `kernel` inputs before `x`, oldest first (batch, width, kernel); None is zeros.

    Returns:
        (batch, time, width) in x's dtype.
    """
    kernel, steps = weight.shape[1], x.shape[1]
    # In wider ones the result, and all that is kept for the backward pass, would be as wide.
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if window is None:
        padded = F.pad(x, (0, 0, kernel - 1, 0))
    else:
        padded = torch.cat([window[:, :, 1:].transpose(1, 2).to(x.dtype), x], dim=1)
    out = padded[:, :steps] * weight[:, 0]
    for tap in range(1, kernel):
        out = torch.addcmul(out, padded[:, tap : tap + steps], weight[:, tap])
    return F.silu(out if bias is None else out + bias)


def causal_conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor) -> Tensor:
    """One step of :func:`causal_conv`: x (batch, width) -> (batch, width) in x's dtype.

    `window` (batch, width, kernel) is shifted in place, so that it ends in x.
    """
    window.copy_(torch.cat([window[:, :, 1:], x.unsqueeze(-1).to(window.dtype)], dim=-1))
    out = (window * weight).sum(-1)
    return F.silu(out if bias is None else out + bias).to(x.dtype)


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
    """The selective state-space recurrence with its gate (arXiv 2312.00752, algorithm 2).

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t;  y_t = (C_t h_t + D u_t) silu(z_t), with dt = softplus(dt + dt_bias) and
    A = -exp(A_log).

    Args:
        u: Inputs after the convolution (batch, time, width).
        dt: Step sizes before bias and softplus (batch, time, width).
        A_log: Logarithms of the decay rates (width, state), fp32.
        B: (batch, time, state).
        C: (batch, time, state).
        D: Skip weights (width,), fp32.
        z: Gate (batch, time, width).
        dt_bias: (width,), fp32.
        state: h_0 (batch, width, state) or None for zeros.
        valid: (batch, time) bool; where False the state is held exactly and the output is of no use. None is all True.

    Returns:
        y (batch, time, width) in u's dtype, and h after the last step (batch, width, state) in fp32.
    """
    delta = F.softplus(wide(dt) + wide(dt_bias))
    if valid is not None:
        delta = delta * valid.unsqueeze(-1)
    inputs = wide(u)
    with exact(u.device):
        y, last = _ChunkedScan.apply(inputs, delta, negative_rates(A_log), wide(B), wide(C), state)
    y = torch.addcmul(y, inputs, wide(D))
    return (y * F.silu(wide(z))).to(u.dtype), last


def selective_scan_step(
    u: Tensor, dt: Tensor, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor, state: Tensor
) -> Tensor:
    """One step of :func:`selective_scan`, whose tensors have no time here: y (batch, width) in u's dtype.

    `state` (batch, width, state), fp32, is updated in place.
    """
    delta = F.softplus(wide(dt) + wide(dt_bias))
    inputs = wide(u)
    state.mul_(torch.exp2((delta * _LOG2_E).unsqueeze(-1) * negative_rates(A_log)))
    state.addcmul_((delta * inputs).unsqueeze(-1), wide(B).unsqueeze(1))
    y = torch.bmm(state, wide(C).unsqueeze(-1)).squeeze(-1)
    return (torch.addcmul(y, inputs, wide(D)) * F.silu(wide(z))).to(u.dtype)


def chunk_steps(batch: int, width: int, states: int, steps: int) -> int:
    """Return the number of time steps of one chunk of the scan."""
    return max(1, min(steps, max(_MIN_CHUNK_STEPS, _CHUNK_ELEMENTS // max(1, batch * width * states))))


def negative_rates(A_log: Tensor) -> Tensor:
    """Return A (width, state) in fp32 or wider: the decay rates with a minus."""
    return -torch.exp(wide(A_log))


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in fp32, or as it is where it is fp64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def unit_stride(tensor: Tensor) -> Tensor:
    """Return a tensor whose last dimension is dense, the same one where it is; the others may have any strides."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def exact(device: torch.device) -> torch.autocast:
    """Return a context in which autocast rounds no product to bf16; on the meta device its switch is the CPU's."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


class _ChunkedScan(torch.autograd.Function):
    """y_t = C_t h_t with h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t; all tensors fp32 (or all fp64).

    Inside, states lie as (steps, batch, state, width): the width is innermost, so every pass is a long contiguous one.
    """

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        (batch, steps, width), states = u.shape, A.shape[1]
        size = chunk_steps(batch, width, states, steps)
        decay_rates = A.t().contiguous()
        u_t, dt_t, B_t, C_t = (tensor.transpose(0, 1).contiguous() for tensor in (u, dt, B, C))
        h = u.new_zeros(batch, states, width) if state is None else state.to(u.dtype).transpose(1, 2).contiguous()
        starts = u.new_empty(-(-steps // size), batch, states, width)
        decay, hidden = (_Buffer(u, size, batch, states, width) for _ in range(2))
        y = torch.empty_like(u_t)
        for index, begin in enumerate(range(0, steps, size)):
            starts[index] = h
            part = slice(begin, min(begin + size, steps))
            count = part.stop - begin
            _run_chunk(dt_t[part], u_t[part], B_t[part], decay_rates, h, decay, hidden)
            y[part] = torch.matmul(C_t[part].unsqueeze(2), hidden.whole[:count]).squeeze(2)
            h = hidden.steps[count - 1].clone()
        ctx.save_for_backward(u_t, dt_t, decay_rates, B_t, C_t, starts)
        ctx.size, ctx.has_state = size, state is not None
        return y.transpose(0, 1), h.transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_y, grad_last = gradients
        u, dt, decay_rates, B, C, starts = ctx.saved_tensors
        steps, size = u.shape[0], ctx.size
        grad_y = grad_y.transpose(0, 1)
        carry = grad_last.transpose(1, 2).contiguous()
        grads = [torch.empty_like(tensor) for tensor in (u, dt, B, C)]
        grad_rates = torch.zeros_like(decay_rates)
        buffers = [_Buffer(u, size, *starts.shape[1:]) for _ in range(3)]
        for index in reversed(range(starts.shape[0])):
            part = slice(index * size, min((index + 1) * size, steps))
            chunk, pieces = ([tensor[part] for tensor in tensors] for tensors in ((u, dt, B, C), grads))
            with exact(u.device):
                carry, rates = _backward_chunk(chunk, decay_rates, starts[index], grad_y[part], carry, buffers, pieces)
            grad_rates += rates
        du, ddt, dB, dC = (gradient.transpose(0, 1) for gradient in grads)
        return du, ddt, grad_rates.t(), dB, dC, carry.transpose(1, 2) if ctx.has_state else None


class _Buffer:
    """A chunk's tensor, and views of its steps: to make them anew for every chunk takes as long as to use them."""

    def __init__(self, like: Tensor, size: int, *shape: int) -> None:
        self.whole = like.new_empty(size, *shape)
        self.steps = self.whole.unbind()


def _run_chunk(dt: Tensor, u: Tensor, B: Tensor, rates: Tensor, h: Tensor, decay: _Buffer, hidden: _Buffer) -> None:
    """Fill `decay` with exp(dt A) and `hidden` with the states of one chunk that starts from `h`."""
    count = len(dt)
    torch.mul(dt.unsqueeze(2), rates * _LOG2_E, out=decay.whole[:count]).exp2_()
    torch.mul((dt * u).unsqueeze(2), B.unsqueeze(3), out=hidden.whole[:count])
    for now, fade in zip(hidden.steps[:count], decay.steps[:count], strict=True):
        now.addcmul_(fade, h)
        h = now


def _backward_chunk(
    chunk: list[Tensor],
    rates: Tensor,
    start: Tensor,
    grad_y: Tensor,
    carry: Tensor,
    buffers: list[_Buffer],
    grads: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """Write the gradients of (u, dt, B, C) of the chunk to `grads`; return those of its start state and the rates."""
    u, dt, B, C = chunk
    grad_u, grad_dt, grad_B, grad_C = grads
    count = len(u)
    _run_chunk(dt, u, B, rates, start, *buffers[:2])
    decay, hidden, grad = (buffer.whole[:count] for buffer in buffers)
    _times_states(grad_y, hidden, grad_C)
    torch.mul(C.unsqueeze(3), grad_y.unsqueeze(2), out=grad)
    grad[-1] += carry
    fades, going_back = buffers[0].steps, buffers[2].steps
    for step in range(count - 1, 0, -1):
        going_back[step - 1].addcmul_(fades[step], going_back[step])
    carry = decay[0] * grad[0]
    grad_dtu = torch.matmul(B.unsqueeze(2), grad).squeeze(2)
    _times_states(dt * u, grad, grad_B)
    # From here on `decay` holds the gradient of the exponent dt A: grad h_{t-1} exp(dt A).
    decay *= grad
    decay[1:] *= hidden[:-1]
    decay[0] *= start
    torch.sum(torch.mul(decay, rates, out=hidden), 2, out=grad_dt)
    grad_dt.addcmul_(grad_dtu, u)
    torch.mul(grad_dtu, dt, out=grad_u)
    return carry, decay.mul_(dt.unsqueeze(2)).sum((0, 1))


def _times_states(x: Tensor, states: Tensor, out: Tensor) -> None:
    """Write x (steps, batch, width) times states (steps, batch, state, width), summed over the width, to `out`.

    A vector times a transposed matrix: the same product the other way takes nine times as long.
    """
    torch.matmul(x.unsqueeze(2), states.transpose(2, 3), out=out.unsqueeze(2))
