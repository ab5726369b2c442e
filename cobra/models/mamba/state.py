"""The inference state of a Mamba model: a value of constant size, whatever the length of the text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cobra.models.mamba.config import MambaConfig
from cobra.models.mamba.mixer import LayerState, mixer_class
from cobra.util.errors import UserError


@dataclass
class MambaState:
    """Everything that a Mamba model remembers of the tokens it has read, for a batch of rows.

    parts: The tensors of the model's mixer by name (layer, batch, ...), fp32; see :meth:`Mixer.state_shapes`.

    Reading more tokens updates them in place; :meth:`clone` first to keep the past.
    """

    parts: dict[str, Tensor]

    @classmethod
    def zeros(cls, config: MambaConfig, batch: int, device: torch.device | str) -> "MambaState":
        """Return the state of `batch` rows that have read nothing."""
        return cls({name: torch.zeros(shape, device=device) for name, shape in _shapes(config, batch).items()})

    def __getitem__(self, name: str) -> Tensor:
        return self.parts[name]

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return next(iter(self.parts.values())).shape[1]

    @property
    def device(self) -> torch.device:
        """Device of all parts."""
        return next(iter(self.parts.values())).device

    @property
    def nbytes(self) -> int:
        """Bytes that the state takes."""
        return sum(part.nbytes for part in self.parts.values())

    def layer(self, index: int) -> LayerState:
        """Return views of one layer's part."""
        return {name: part[index] for name, part in self.parts.items()}

    def rows(self, rows: slice) -> "MambaState":
        """Return views of some rows."""
        return self._map(lambda part: part[:, rows])

    def write(self, rows: Tensor | slice, source: "MambaState") -> None:
        """Overwrite some rows, by their indices (n,) int64 or a slice, with those of another state."""
        for name, part in self.parts.items():
            part[:, rows] = source.parts[name]

    def clone(self) -> "MambaState":
        """Return a copy that shares no memory."""
        return self._map(Tensor.clone)

    def select(self, rows: Tensor) -> "MambaState":
        """Return a copy with the given rows, by their indices (n,) int64, in order; a row may be repeated."""
        return self._map(lambda part: part.index_select(1, rows))

    @classmethod
    def join(cls, states: Sequence["MambaState"]) -> "MambaState":
        """Return a copy with the rows of several states, in order."""
        return cls({name: torch.cat([state.parts[name] for state in states], 1) for name in states[0].parts})

    def _map(self, function: Callable[[Tensor], Tensor]) -> "MambaState":
        return MambaState({name: function(part) for name, part in self.parts.items()})

    def check(self, config: MambaConfig, batch: int) -> None:
        """Check that a model of these sizes can go on from this state with `batch` rows.

        Raises:
            UserError: The state is of another model, of another number of rows, or not in fp32; it names both.
        """
        shapes = {name: part.shape for name, part in self.parts.items()}
        dtypes = {part.dtype for part in self.parts.values()}
        if dtypes != {torch.float32}:
            raise UserError(
                f"the state is in {' and '.join(sorted(str(dtype) for dtype in dtypes))}, but a Mamba state is in "
                "torch.float32, whatever the dtype of the model"
            )
        rows = max((shape[1] for shape in shapes.values() if len(shape) > 1), default=0)
        expected = _shapes(config, rows)
        if shapes != expected:
            raise UserError(
                f"the state is of another model: it holds {_described(shapes)}, but this model has "
                f"{_described(expected)} of (layer, batch, ...)"
            )
        if rows != batch:
            raise UserError(f"the state has {rows} rows, but {batch} rows of tokens are to be read")


def _described(shapes: dict[str, torch.Size]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())


def _shapes(config: MambaConfig, batch: int) -> dict[str, torch.Size]:
    """Return the shapes of a state's parts (layer, batch, ...) by name."""
    shapes = mixer_class(config).state_shapes(config)
    return {name: torch.Size((config.n_layer, batch, *shape)) for name, shape in shapes.items()}
