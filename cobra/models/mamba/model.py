"""Mamba-1 (arXiv 2312.00752) under the parameter names of state-spaces' checkpoints, with continuation and padding."""

import math
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cobra.models.mamba.config import MambaConfig
from cobra.models.mamba.ops import ops_for, torch_ops
from cobra.models.mamba.state import LayerState, MambaState
from cobra.util.errors import UserError


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in fp32 and returned in the weight's dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension (..., width)."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps).to(self.weight.dtype)


class MambaMixer(nn.Module):
    """The selective state-space mixer: projection, causal convolution, selective scan, gate, projection."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        width, rank = config.d_inner, config.rank
        self.d_state = config.d_state
        self.rank = rank
        self.in_proj = nn.Linear(config.d_model, 2 * width, bias=config.proj_bias)
        self.conv1d = nn.Conv1d(
            width, width, config.d_conv, groups=width, padding=config.d_conv - 1, bias=config.conv_bias
        )
        self.x_proj = nn.Linear(width, rank + 2 * config.d_state, bias=False)
        self.dt_proj = nn.Linear(rank, width)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, config.d_state + 1).float()).repeat(width, 1))
        self.D = nn.Parameter(torch.ones(width))
        self.out_proj = nn.Linear(width, config.d_model, bias=config.proj_bias)
        self._initialise_steps(config)

    def _initialise_steps(self, config: MambaConfig) -> None:
        """Start the step sizes log-uniform in [dt_min, dt_max]: without it images are not learned (section 3.6)."""
        bound = self.rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        dt = torch.exp(torch.rand(config.d_inner) * (high - low) + low).clamp(min=config.dt_init_floor)
        with torch.no_grad():
            self.x_proj.weight *= config.x_proj_gain
            # The inverse of softplus.
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, x: Tensor, state: LayerState | None = None, valid: Tensor | None = None) -> Tensor:
        """Mix over time.

        Args:
            x: (batch, time, d_model).
            state: What was read before; updated in place to include `x`. None starts from nothing.
            valid: (batch, time) bool, True on tokens and False on padding at the right; None is all True.

        Returns:
            (batch, time, d_model); positions of padding are of no use, and never reach the state.
        """
        ops = ops_for(x.device)
        A = -torch.exp(torch_ops.wide(self.A_log))
        xz = self.in_proj(x)
        if state is not None and x.shape[1] == 1 and valid is None:
            return self._step(ops, xz.squeeze(1), A, state)
        if state is None and valid is None and torch.is_grad_enabled() and ops.inner is not None:
            return ops.inner(xz, self, A)
        inputs, gate = xz.chunk(2, dim=-1)
        weight = self.conv1d.weight.squeeze(1)
        u = ops.causal_conv(inputs, weight, self.conv1d.bias, None if state is None else state.conv)
        dt, B, C = self.x_proj(u).split([self.rank, self.d_state, self.d_state], dim=-1)
        # The bias is added in fp32 inside the scan: in bf16 it would be off by up to 1.6 %.
        dt = F.linear(dt, self.dt_proj.weight)
        before = None if state is None else state.ssm
        y, last = ops.selective_scan(u, dt, A, B, C, self.D, gate, self.dt_proj.bias, before, valid)
        if state is not None:
            state.conv.copy_(_last_window(state.conv, inputs, valid))
            state.ssm.copy_(last)
        return self.out_proj(y)

    def _step(self, ops: ModuleType, xz: Tensor, A: Tensor, state: LayerState) -> Tensor:
        """Read one token a row: xz (batch, 2 * width) -> (batch, 1, d_model)."""
        inputs, gate = xz.chunk(2, dim=-1)
        weight = self.conv1d.weight.squeeze(1)
        u = ops.causal_conv_step(inputs, weight, self.conv1d.bias, state.conv)
        dt, B, C = self.x_proj(u).split([self.rank, self.d_state, self.d_state], dim=-1)
        dt = F.linear(dt, self.dt_proj.weight)
        y = ops.selective_scan_step(u, dt, A, B, C, self.D, gate, self.dt_proj.bias, state.ssm)
        return self.out_proj(y).unsqueeze(1)


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


class MambaBlock(nn.Module):
    """Add, norm, mix: the residual stream stays in fp32 where the config says so."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.mixer = MambaMixer(config)
        self.norm = RMSNorm(config.d_model, config.norm_epsilon)
        self.residual_in_fp32 = config.residual_in_fp32

    def forward(
        self, hidden: Tensor, residual: Tensor | None, state: LayerState | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (mixer output, residual stream), both (batch, time, d_model); see :class:`MambaMixer`."""
        if state is not None and hidden.shape[1] == 1 and valid is None and not torch.is_grad_enabled():
            fused = ops_for(hidden.device).block_step
            found = None if fused is None else fused(self, hidden, residual, state)
            if found is not None:
                return found
        residual = hidden if residual is None else hidden + residual
        if self.residual_in_fp32:
            residual = torch_ops.wide(residual)
        return self.mixer(self.norm(residual), state, valid), residual


class MambaBackbone(nn.Module):
    """Embedding, blocks and final norm."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.layers = nn.ModuleList(MambaBlock(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, config.norm_epsilon)


def _check_lengths(lengths: Tensor, inputs: Tensor) -> None:
    """Check the lengths of rows (batch, time, ...), without waiting for another device.

    Raises:
        UserError: They are not (batch,) whole numbers or, on the CPU, do not lie between 0 and time.
    """
    batch, steps = inputs.shape[:2]
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise UserError(f"lengths are {tuple(lengths.shape)} {lengths.dtype}: expected ({batch},) of whole numbers")
    if lengths.device.type == "cpu" and batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= steps:
        raise UserError(f"lengths lie between {int(lengths.min())} and {int(lengths.max())}, but rows have {steps}")


class MambaLM(nn.Module):
    """A Mamba language model with its head tied to the embedding."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = MambaBackbone(config)
        self.lm_head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False)
        self.gradient_checkpointing = False
        self._initialise()
        self.lm_head.weight = self.backbone.embedding.weight

    def _initialise(self) -> None:
        """GPT-2's scheme: normal embeddings, and output projections shrunk by the depth of the residual stream."""
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        for block in self.backbone.layers:
            mixer: Any = block.mixer
            nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
            with torch.no_grad():
                mixer.out_proj.weight /= math.sqrt(self.config.n_layer)
            for linear in (mixer.in_proj, mixer.out_proj):
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return embeddings (batch, time, d_model) of token ids (batch, time)."""
        return self.backbone.embedding(input_ids)

    def forward(self, inputs_embeds: Tensor, state: MambaState | None = None, lengths: Tensor | None = None) -> Tensor:
        """Run the blocks and the final norm.

        Args:
            inputs_embeds: (batch, time, d_model).
            state: The past that the rows go on from; updated in place. None starts from nothing and keeps nothing.
            lengths: Tokens of each row (batch,) int64 when rows are padded on the right; None: no padding. Whatever the
                padding holds, NaN included, reaches neither the outputs of tokens nor the state.

        Returns:
            Final hidden states (batch, time, d_model), to be given to :meth:`logits`; of no use at padding.

        Raises:
            UserError: The state is not one of this model's, or not of as many rows; or `lengths` do not fit.
        """
        if lengths is not None:
            _check_lengths(lengths, inputs_embeds)
        return self.backbone.norm_f(self._stream(inputs_embeds, state, lengths))

    def _stream(self, hidden: Tensor, state: MambaState | None, lengths: Tensor | None) -> Tensor:
        """Return what the final norm takes; rows are padded on the right."""
        residual, valid = None, None
        if state is not None:
            state.check(self.config, len(hidden))
        if lengths is not None:
            valid = torch.arange(hidden.shape[1], device=hidden.device) < lengths.unsqueeze(1)
            hidden = hidden.masked_fill(~valid.unsqueeze(-1), 0.0)
        for index, block in enumerate(self.backbone.layers):
            layer_state = None if state is None else state.layer(index)
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                hidden, residual = checkpoint(block, hidden, residual, layer_state, valid, use_reentrant=False)
            else:
                hidden, residual = block(hidden, residual, layer_state, valid)
        return hidden if residual is None else hidden + residual

    def logits(self, hidden: Tensor) -> Tensor:
        """Return scores over the padded vocabulary (..., padded_vocab_size), in fp32."""
        return self.lm_head(hidden).float()
