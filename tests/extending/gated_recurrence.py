"""A mixer from outside the package: a gated linear recurrence, h_t = a h_(t-1) + (1 - a) u_t."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cobra.models.mamba.config import MambaConfig
from cobra.models.mamba.mixer import LayerState, Mixer, register_mixer


class GatedRecurrence(Mixer):
    """A decay for each channel, and a gate on what is read."""

    fp32_names = undecayed_names = ("decay",)
    lora_targets = ("in_proj", "out_proj")

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.d_model, 2 * config.d_inner, bias=False)
        self.decay = nn.Parameter(torch.linspace(-1, 3, config.d_inner).unsqueeze(0))
        self.out_proj = nn.Linear(config.d_inner, config.d_model, bias=False)

    @classmethod
    def state_shapes(cls, config: MambaConfig) -> dict[str, tuple[int, ...]]:
        """Return the shape of what a layer remembers of one row."""
        return {"memory": (config.d_inner,)}

    def scan_flops(self) -> float:
        """Return the operations of decay, drive and gate for one position."""
        return 4.0 * self.decay.numel()

    def forward(self, x: Tensor, state: LayerState | None = None, valid: Tensor | None = None) -> Tensor:
        """Mix x (batch, time, d_model) over time; padding, where `valid` is False, leaves the memory as it is."""
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        keep, seen = torch.sigmoid(self.decay), []
        memory = torch.zeros_like(u[:, 0]) if state is None else state["memory"].clone()
        for step in range(x.shape[1]):
            read = keep * memory + (1 - keep) * u[:, step]
            memory = read if valid is None else torch.where(valid[:, step, None], read, memory)
            seen.append(memory)
        if state is not None:
            state["memory"].copy_(memory)
        return self.out_proj(torch.stack(seen, dim=1).to(u.dtype) * F.silu(gate))


register_mixer("GatedRecurrence", GatedRecurrence)
