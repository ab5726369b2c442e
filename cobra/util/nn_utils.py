"""Projectors: from patch features of the vision towers to embeddings of the language model."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

# Side of the grid to which the downsampling projector pools the patches: 14 * 14 = 196 image tokens.
_POOLED_SIDE = 14


class LinearProjector(nn.Module):
    """One linear layer."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.projector = nn.Linear(vision_dim, llm_dim)

    def forward(self, patches: Tensor) -> Tensor:
        """Map (batch, patches, vision_dim) to (batch, patches, llm_dim)."""
        return self.projector(patches)


class MLPProjector(nn.Module):
    """Two linear layers with a GELU between (LLaVA-1.5, arXiv 2310.03744)."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(vision_dim, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim))

    def forward(self, patches: Tensor) -> Tensor:
        """Map (batch, patches, vision_dim) to (batch, patches, llm_dim)."""
        return self.projector(patches)


class FusedMLPProjector(nn.Module):
    """Three linear layers with GELUs between; the first is four times as wide as the features."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        wide = 4 * vision_dim
        self.projector = nn.Sequential(
            nn.Linear(vision_dim, wide), nn.GELU(), nn.Linear(wide, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Map (batch, patches, vision_dim) to (batch, patches, llm_dim)."""
        return self.projector(patches)


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


class FusedLDPProjector(nn.Module):
    """The lightweight downsampling projector: a wide MLP, pooling to 196 tokens, and a convolution as position."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        wide = 4 * vision_dim
        self.projector = nn.Sequential(
            nn.Linear(vision_dim, wide), nn.GELU(), nn.Linear(wide, llm_dim), nn.Identity(), _PooledPositions(llm_dim)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Map (batch, side * side, vision_dim) to (batch, 196, llm_dim)."""
        return self.projector(patches)


class LDPProjector(nn.Module):
    """:class:`FusedLDPProjector` with a first layer as wide as the language model, for a single tower."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(vision_dim, llm_dim),
            nn.GELU(),
            nn.Linear(llm_dim, llm_dim),
            nn.Identity(),
            _PooledPositions(llm_dim),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Map (batch, side * side, vision_dim) to (batch, 196, llm_dim)."""
        return self.projector(patches)
