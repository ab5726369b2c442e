"""Pure-PyTorch functions with the signatures, layouts and in-place behaviour of mamba-ssm and causal-conv1d.

They check what the real kernels would refuse: layouts, contiguity and dtypes.
"""

import torch
import torch.nn.functional as F


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
                     final_states_out=None, activation=None):  # fmt: skip
    """x (batch, width, time), weight (width, kernel)."""
    assert activation in (None, "silu", "swish")
    assert seq_idx is None and initial_states is None and not return_final_states
    batch, width, steps = x.shape
    assert weight.shape[0] == width and weight.ndim == 2 and weight.dtype == x.dtype
    out = F.conv1d(x, weight.unsqueeze(1), bias, padding=weight.shape[1] - 1, groups=width)[..., :steps]
    return F.silu(out) if activation else out


def causal_conv1d_update(x, conv_state, weight, bias=None, activation=None, cache_seqlens=None,
                         conv_state_indices=None):  # fmt: skip
    """x (batch, width), conv_state (batch, width, kernel) shifted in place."""
    assert x.ndim == 2 and conv_state.shape[:2] == x.shape and conv_state.shape[2] >= weight.shape[1] - 1
    assert x.dtype == conv_state.dtype == weight.dtype
    conv_state.copy_(torch.roll(conv_state, -1, dims=-1))
    conv_state[:, :, -1] = x
    out = (conv_state * weight).sum(-1)
    out = out if bias is None else out + bias
    return F.silu(out) if activation else out


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
                      return_last_state=False):  # fmt: skip
    """u, delta, z (batch, width, time); A (width, state); B, C (batch, state, time)."""
    assert u.shape == delta.shape and B.shape == C.shape == (u.shape[0], A.shape[1], u.shape[2])
    assert all(tensor.stride(-1) == 1 or tensor.shape[-1] == 1 for tensor in (u, delta, B, C))
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert A.dtype == torch.float32 and (D is None or D.dtype == torch.float32)
    assert delta_bias is None or delta_bias.dtype == torch.float32
    dt = delta.float() if delta_bias is None else delta.float() + delta_bias[:, None]
    dt = F.softplus(dt) if delta_softplus else dt
    state = u.new_zeros(*A.shape, dtype=torch.float32).expand(u.shape[0], -1, -1)
    ys = []
    for t in range(u.shape[2]):
        drive = (dt[:, :, t] * u[:, :, t].float())[..., None] * B[:, None, :, t].float()
        state = torch.exp(dt[:, :, t, None] * A) * state + drive
        ys.append((state * C[:, None, :, t].float()).sum(-1))
    y = torch.stack(ys, -1)
    y = y if D is None else y + u.float() * D[:, None]
    y = (y if z is None else y * F.silu(z.float())).to(u.dtype)
    return (y, state) if return_last_state else y


def selective_state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """state (batch, width, state) updated in place; x, dt, z (batch, width); B, C (batch, state)."""
    assert x.shape == dt.shape == state.shape[:2] and B.shape == C.shape == (x.shape[0], A.shape[1])
    step = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
    step = F.softplus(step) if dt_softplus else step
    drive = (step * x.float())[..., None] * B[:, None].float()
    state.copy_(torch.exp(step[..., None] * A) * state + drive)
    y = (state * C[:, None].float()).sum(-1)
    y = y if D is None else y + x.float() * D
    return (y if z is None else y * F.silu(z.float())).to(x.dtype)


def mamba_inner_fn(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias,
                   A, B=None, C=None, D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None,
                   delta_softplus=True):  # fmt: skip
    """xz (batch, 2 * width, time), conv1d_weight (width, 1, kernel); returns (batch, time, d_model)."""
    assert (xz.stride(-1) == 1 or xz.shape[-1] == 1) and conv1d_weight.ndim == 3 and B is None and C is None
    x, z = xz.chunk(2, dim=1)
    x = causal_conv1d_fn(x, conv1d_weight.squeeze(1).to(x.dtype), conv1d_bias, activation="silu")
    rank = delta_proj_weight.shape[1]
    dt, B, C = F.linear(x.transpose(1, 2), x_proj_weight).split([rank, A.shape[1], A.shape[1]], dim=-1)
    delta = F.linear(dt, delta_proj_weight).transpose(1, 2).contiguous()
    B, C = B.transpose(1, 2).contiguous(), C.transpose(1, 2).contiguous()
    y = selective_scan_fn(x.contiguous(), delta, A, B, C, D, z, delta_bias, delta_softplus)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)
