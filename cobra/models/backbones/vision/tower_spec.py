"""Specification of a tower of timm; imports no torch."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TowerSpec:
    """A ViT of timm: its architecture, its input size, and the arguments that differ from timm's entry."""

    timm_id: str
    image_size: int
    kwargs: dict[str, Any] = field(default_factory=dict)
