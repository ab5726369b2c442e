"""Mamba-1's mixer, the selective state-space model of arXiv 2312.00752."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cobra.models.mamba.config import MambaConfig
from cobra.models.mamba.mixer import LayerState, Mixer
from cobra.models.mamba.ops import ops_for

# Operations of a step of the scan for each channel and state, as is usual for this kernel: decay, drive, state and read
# (2 each), and a part of D and gate; an exponential counts once.
_SCAN = 9


class Mamba1Mixer(Mixer):
    """The selective state-space mixer: projection, causal convolution, selective scan, gate, projection.

    Its state: `conv`, the last `d_conv` inputs of the convolution, oldest first (batch, d_inner, d_conv), and `ssm`,
    the state of the scan (batch, d_inner, d_state).
    """

    # Rounded to bf16 these move the decay by up to 0.7 % and the step sizes by up to 1.6 %.
    fp32_names = ("A_log", "D", "dt_proj.bias")
    undecayed_names = ("A_log",)
    # Convolution, A_log and D are no matrices of a linear map.
    lora_targets = ("in_proj", "x_proj", "dt_proj", "out_proj")
    quantized_names = ("in_proj", "out_proj")

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        width, rank = config.d_inner, config.rank
        self.d_state, self.rank = config.d_state, rank
        self.in_proj = nn.Linear(config.d_model, 2 * width, bias=config.proj_bias)
        self.conv1d = nn.Conv1d(
            width, width, config.d_conv, groups=width, padding=config.d_conv - 1, bias=config.conv_bias
        )
        self.x_proj = nn.Linear(width, rank + 2 * config.d_state, bias=False)
        self.dt_proj = nn.Linear(rank, width)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, config.d_state + 1).float()).repeat(width, 1))
        self.D = nn.Parameter(torch.ones(width))
        self.out_proj = nn.Linear(width, config.d_model, bias=config.proj_bias)
        # Step sizes start log-uniform in [dt_min, dt_max]: without it images are not learned (section 3.6).
        bound = rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        dt = torch.exp(torch.rand(config.d_inner) * (high - low) + low).clamp(min=config.dt_init_floor)
        with torch.no_grad():
            self.x_proj.weight *= config.x_proj_gain
            # The inverse of softplus.
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    @classmethod
    def state_shapes(cls, config: MambaConfig) -> dict[str, tuple[int, ...]]:
        """See :meth:`Mixer.state_shapes`."""
        return {"conv": (config.d_inner, config.d_conv), "ssm": (config.d_inner, config.d_state)}

    def scan_flops(self) -> float:
        """Return the operations of convolution, scan and gate for one position."""
        taps, (width, states) = self.conv1d.weight.shape[-1], self.A_log.shape
        return 2.0 * width * taps + width * (_SCAN * states + 2)

    def initialise(self, n_layer: int) -> None:
        """Shrink the output projection by the depth of the residual stream, as GPT-2 does, and zero the biases."""
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(n_layer)
        for linear in (self.in_proj, self.out_proj):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, state: LayerState | None = None, valid: Tensor | None = None) -> Tensor:
        """See :meth:`Mixer.forward`."""
        ops = ops_for(x.device)
        xz = self.in_proj(x)
        is_step = state is not None and x.shape[1] == 1 and valid is None
        # The fused kernel would keep every dequantised weight up to the backward pass.
        inner = None if self.is_quantized else ops.inner
        if state is None and valid is None and torch.is_grad_enabled() and inner is not None:
            return inner(xz, self)
        inputs, gate = (xz.squeeze(1) if is_step else xz).chunk(2, dim=-1)
        taps, bias, window = self.conv1d.weight.squeeze(1), self.conv1d.bias, None if state is None else state["conv"]
        u = (ops.causal_conv_step if is_step else ops.causal_conv)(inputs, taps, bias, window)
        dt, B, C = self.x_proj(u).split([self.rank, self.d_state, self.d_state], dim=-1)
        # The bias is added in fp32 inside the scan: in bf16 it would be off by up to 1.6 %.
        scan = (u, F.linear(dt, self.dt_proj.weight), self.A_log, B, C, self.D, gate, self.dt_proj.bias)
        if state is not None and is_step:
            return self.out_proj(ops.selective_scan_step(*scan, state["ssm"])).unsqueeze(1)
        y, last = ops.selective_scan(*scan, None if state is None else state["ssm"], valid)
        if state is not None:
            state["conv"].copy_(_last_window(state["conv"], inputs, valid))
            state["ssm"].copy_(last)
        return self.out_proj(y)

    def block_step(
        self, norm: nn.Module, hidden: Tensor, residual: Tensor | None, state: LayerState
    ) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Mixer.block_step`; the operations of numba and Triton have it."""
        fused = ops_for(hidden.device).block_step
        return None if fused is None or self.is_quantized else fused(self, norm, hidden, residual, state)


def _last_window(window: Tensor, inputs: Tensor, valid: Tensor | None) -> Tensor:
    """Return the last inputs of every row after reading `inputs` (batch, time, width), as (batch, width, kernel)."""
    kernel = window.shape[-1]
    if valid is None:
        recent = inputs[:, -kernel:].transpose(1, 2).to(window.dtype)
        return torch.cat([window[:, :, recent.shape[2] :], recent], dim=-1)
    # Counted from the first of `inputs`; those before it are in the old window.
    places = valid.sum(1, keepdim=True) + torch.arange(-kernel, 0, device=window.device)
    recent = inputs.gather(1, places.clamp(min=0).unsqueeze(-1).expand(-1, -1, inputs.shape[2]))
    older = window.gather(2, (places + kernel).clamp(max=kernel - 1).unsqueeze(1).expand_as(window))
    return torch.where(places.unsqueeze(1) < 0, older, recent.transpose(1, 2).to(window.dtype))
