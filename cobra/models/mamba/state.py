"""The inference state of a Mamba model: a value of constant size, whatever the length of the text."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cobra.models.mamba.config import MambaConfig


@dataclass
class MambaState:
    """Everything that a Mamba model remembers of the tokens it has read, for a batch of rows.

    conv: The last `d_conv` inputs of each layer's convolution, oldest first (layer, batch, width, d_conv), fp32.
    ssm: The state of each layer's scan (layer, batch, width, d_state), fp32.

    Reading more tokens updates both in place; :meth:`clone` first to keep the past.
    """

    conv: Tensor
    ssm: Tensor

    @classmethod
    def zeros(cls, config: MambaConfig, batch: int, device: torch.device | str) -> "MambaState":
        """Return the state of `batch` rows that have read nothing."""
        shape = (config.n_layer, batch, config.d_inner)
        return cls(
            conv=torch.zeros(*shape, config.d_conv, device=device),
            ssm=torch.zeros(*shape, config.d_state, device=device),
        )

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self.ssm.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that the state takes."""
        return self.conv.nbytes + self.ssm.nbytes

    def layer(self, index: int) -> "LayerState":
        """Return views of one layer's part."""
        return LayerState(self.conv[index], self.ssm[index])

    def clone(self) -> "MambaState":
        """Return a copy that shares no memory."""
        return MambaState(self.conv.clone(), self.ssm.clone())

    def select(self, rows: Tensor) -> "MambaState":
        """Return a copy with the given rows, in order; a row may be repeated.

        Args:
            rows: Indices (n,) int64.
        """
        return MambaState(self.conv.index_select(1, rows), self.ssm.index_select(1, rows))


@dataclass
class LayerState:
    """One layer's part of a :class:`MambaState`: views, updated in place.

    conv: (batch, width, d_conv), fp32.
    ssm: (batch, width, d_state), fp32.
    """

    conv: Tensor
    ssm: Tensor
