"""The inference state of a Mamba model: a value of constant size, whatever the length of the text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cobra.models.mamba.config import MambaConfig
from cobra.util.errors import UserError


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
        conv, ssm = state_shapes(config, batch)
        return cls(conv=torch.zeros(conv, device=device), ssm=torch.zeros(ssm, device=device))

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

    @classmethod
    def join(cls, states: Sequence["MambaState"]) -> "MambaState":
        """Return a copy with the rows of several states, in order."""
        return cls(torch.cat([state.conv for state in states], 1), torch.cat([state.ssm for state in states], 1))

    def check(self, config: MambaConfig, batch: int) -> None:
        """Check that a model of these sizes can go on from this state with so many rows.

        Args:
            config: The model's sizes.
            batch: Rows that there must be.

        Raises:
            UserError: The state is of another model, of another number of rows, or not in fp32; it names both.
        """
        if self.conv.dtype != torch.float32 or self.ssm.dtype != torch.float32:
            raise UserError(
                f"the state is in {self.conv.dtype} and {self.ssm.dtype}, but a Mamba state is in torch.float32, "
                "whatever the dtype of the model"
            )
        rows = self.batch_size if self.ssm.ndim > 1 else 0
        if (self.conv.shape, self.ssm.shape) != state_shapes(config, rows):
            raise UserError(
                f"the state is of another model: (layer, batch, width, taps) {tuple(self.conv.shape)} and "
                f"(layer, batch, width, state) {tuple(self.ssm.shape)}, but this model has {config.n_layer} layers of "
                f"width {config.d_inner}, {config.d_conv} taps and {config.d_state} states"
            )
        if rows != batch:
            raise UserError(f"the state has {rows} rows, but {batch} rows of tokens are to be read")


def state_shapes(config: MambaConfig, batch: int) -> tuple[torch.Size, torch.Size]:
    """Return the shapes of a state's `conv` and `ssm`."""
    shape = (config.n_layer, batch, config.d_inner)
    return torch.Size((*shape, config.d_conv)), torch.Size((*shape, config.d_state))


@dataclass
class LayerState:
    """One layer's part of a :class:`MambaState`: views, updated in place.

    conv: (batch, width, d_conv), fp32.
    ssm: (batch, width, d_state), fp32.
    """

    conv: Tensor
    ssm: Tensor
