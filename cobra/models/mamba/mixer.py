"""The mixer: the part of a block that passes information on over time, and everything that depends on its kind.

To add one, derive from :class:`Mixer`, call :func:`register_mixer`, and name it as `ssm_cfg.layer` in the language
model's `config.json`. Training, adapters, plans, states and generation then ask the class for what they need.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, cast

from torch import Tensor, nn

from cobra.models.mamba.config import MIXERS, MambaConfig

LayerState = Mapping[str, Tensor]
"""One layer's part of a state: (batch, ...) fp32 by name, views that a mixer updates in place."""


class Mixer(nn.Module, ABC):
    """Base of all mixers; a subclass is built from the language model's config alone: `Kind(config)`."""

    fp32_names: ClassVar[tuple[str, ...]] = ()
    """Parameters, by their names in the mixer, that stay in fp32 whatever the model is cast to."""
    undecayed_names: ClassVar[tuple[str, ...]] = ()
    """Parameters of two or more dimensions, by their names in the mixer, that weight decay spares."""
    lora_targets: ClassVar[tuple[str, ...]] = ()
    """Linear layers, by their names in the mixer, that can get a low-rank adapter."""

    quantized_names: ClassVar[tuple[str, ...]] = ()
    """Linear layers, by their names in the mixer, that hold most of the weights and can be quantised."""

    is_quantized: bool = False
    """True once these are quantised (:func:`cobra.models.quantized.quantize`)."""

    @classmethod
    @abstractmethod
    def state_shapes(cls, config: MambaConfig) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor, at least one, that a layer remembers of one row."""

    @abstractmethod
    def scan_flops(self) -> float:
        """Return the operations of the forward pass for one position, without those of linear layers."""

    @abstractmethod
    def forward(self, x: Tensor, state: LayerState | None = None, valid: Tensor | None = None) -> Tensor:
        """Mix over time.

        Args:
            x: (batch, time, d_model).
            state: Memory of the positions before; updated in place to include `x`. None starts from nothing.
            valid: (batch, time) bool, True on tokens and False on padding at the right; None is all True.

        Returns:
            (batch, time, d_model); positions of padding are of no use, and never reach the state.
        """

    def block_step(
        self, norm: nn.Module, hidden: Tensor, residual: Tensor | None, state: LayerState
    ) -> tuple[Tensor, Tensor] | None:
        """Take one token a row through a whole block in one call, without gradients; None is no such call.

        Args:
            norm: The block's norm.
            hidden: Output of the block before (batch, 1, d_model).
            residual: The stream (batch, 1, d_model); None in the first block.
            state: Updated in place, unless None is returned.

        Returns:
            The mixer's output and the stream, both (batch, 1, d_model).
        """
        return None

    def initialise(self, n_layer: int) -> None:
        """Draw the initial values that depend on the number of layers, in place; called once, after construction."""


def register_mixer(name: str, mixer: type[Mixer]) -> None:
    """Make a mixer known under the name that `ssm_cfg.layer` gives; a known name is replaced."""
    MIXERS[name] = mixer


def mixer_class(config: MambaConfig) -> type[Mixer]:
    """Return the mixer of a language model."""
    return cast(type[Mixer], MIXERS[config.mixer])


def all_lora_targets() -> list[str]:
    """Return the layers that can get an adapter in any of the known mixers, in order."""
    return list(dict.fromkeys(name for mixer in MIXERS.values() for name in cast(type[Mixer], mixer).lora_targets))


def fp32_parameters(module: nn.Module) -> set[str]:
    """Return the full names of the parameters that the mixers inside a module keep in fp32."""
    mixers = ((path, mixer) for path, mixer in module.named_modules() if isinstance(mixer, Mixer))
    return {f"{path}.{name}".removeprefix(".") for path, mixer in mixers for name in mixer.fp32_names}
