"""Projectors: from patch features of the vision towers to embeddings of the language model."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cobra.util.errors import UserError

# Side of the grid to which the downsampling projector pools the patches: 14 * 14 = 196 image tokens.
_POOLED_SIDE = 14


class _Projector(nn.Module):
    """Base of the projectors, under whose `projector` their layers are named in checkpoints."""

    projector: nn.Module

    def forward(self, patches: Tensor) -> Tensor:
        """Map (batch, patches, vision_dim) to (batch, image tokens, llm_dim)."""
        return self.projector(patches)


class LinearProjector(_Projector):
    """One linear layer."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.projector = nn.Linear(vision_dim, llm_dim)


class MLPProjector(_Projector):
    """Two linear layers with a GELU between (LLaVA-1.5, arXiv 2310.03744)."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(vision_dim, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim))


class FusedMLPProjector(_Projector):
    """Three linear layers with GELUs between; the first is four times as wide as the features."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        wide = 4 * vision_dim
        self.projector = nn.Sequential(
            nn.Linear(vision_dim, wide), nn.GELU(), nn.Linear(wide, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim)
        )


class _PooledPositions(nn.Module):
    """Pool a square grid of patches to 14 x 14 and add a depthwise 3 x 3 convolution as position (arXiv 2402.03766)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.peg = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width))

    def forward(self, patches: Tensor) -> Tensor:
        """Map (batch, side * side, width) to (batch, 196, width)."""
        batch, count, width = patches.shape
        side = math.isqrt(count)
        grid = patches.transpose(1, 2).reshape(batch, width, side, side)
        pooled = F.adaptive_avg_pool2d(grid, _POOLED_SIDE)
        return (self.peg(pooled) + pooled).flatten(2).transpose(1, 2)


def projected_positions(projector: nn.Module, patches: int) -> int:
    """Return how many positions the patches of an image take after a projector."""
    pools = any(isinstance(module, _PooledPositions) for module in projector.modules())
    return _POOLED_SIDE**2 if pools else patches


class FusedLDPProjector(_Projector):
    """The lightweight downsampling projector: a wide MLP, pooling to 196 tokens, and a convolution as position."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        wide = 4 * vision_dim
        self.projector = nn.Sequential(
            nn.Linear(vision_dim, wide), nn.GELU(), nn.Linear(wide, llm_dim), nn.Identity(), _PooledPositions(llm_dim)
        )


class LDPProjector(_Projector):
    """:class:`FusedLDPProjector` with a first layer as wide as the language model, for a single tower."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        first, second = nn.Linear(vision_dim, llm_dim), nn.Linear(llm_dim, llm_dim)
        self.projector = nn.Sequential(first, nn.GELU(), second, nn.Identity(), _PooledPositions(llm_dim))


def build_projector(arch_specifier: str, vision_dim: int, llm_dim: int) -> nn.Module:
    """Build the projector that an architecture names, from channels of a patch to the language model's width.

    Raises:
        UserError: The architecture is neither `linear` nor ends in `fused-gelu-mlp`, `gelu-mlp` or `fused-ldpnet`.
    """
    kinds = (kind for ending, kind in _PROJECTORS.items() if arch_specifier.endswith(ending))
    projector = LinearProjector if arch_specifier == "linear" else next(kinds, None)
    if projector is None:
        raise UserError(
            f"the architecture {arch_specifier!r} is unknown: it must be 'linear' or end in {', '.join(_PROJECTORS)}; "
            "a leading 'no-align+' says that no align stage is needed"
        )
    # Every run starts from the same projector: its own seed, outside the run's random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(vision_dim)
        return projector(vision_dim, llm_dim)


# Tested in this order: `fused-gelu-mlp` ends in `gelu-mlp` too.
_PROJECTORS = {"fused-gelu-mlp": FusedMLPProjector, "gelu-mlp": MLPProjector, "fused-ldpnet": FusedLDPProjector}
