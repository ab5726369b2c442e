"""A linear layer with a low-rank adapter that also holds where its weight is read and not its forward pass called."""

from typing import cast

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import Tensor, nn


class AdaptedLinear(lora.Linear):
    """peft's layer (arXiv 2106.09685), with the adapter in `weight` too.

    Mamba's mixer reads `dt_proj.weight`, and its fused kernel `x_proj.weight` and `out_proj.weight` as well. peft's own
    layer shows the frozen weight there, so that those adapters would take part in nothing and stay at zero.

    Dropout leaves out input features of the adapter, the same ones for all tokens of a pass, because a weight that is
    read knows no tokens.
    """

    @property
    def weight(self) -> Tensor:
        """The frozen weight plus the adapter's product (out, in), in the frozen weight's dtype."""
        down, up = self._factors()
        frozen = cast(nn.Linear, self.get_base_layer()).weight
        return frozen + (up @ down).to(frozen.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        down, up = self._factors()
        return self.get_base_layer()(x) + F.linear(F.linear(x, down), up)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Return A (rank, in), after dropout, and B (out, rank), scaled."""
        (name,) = self.active_adapters
        down, up = cast(nn.Linear, self.lora_A[name]).weight, cast(nn.Linear, self.lora_B[name]).weight
        kept = self.lora_dropout[name](torch.ones_like(down[:1]))
        return down * kept, up * self.scaling[name]
