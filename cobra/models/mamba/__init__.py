"""Mamba as an own module: parameters under their published names, operations chosen by device, state as a value."""

from cobra.models.mamba.config import MambaConfig
from cobra.models.mamba.model import MambaLM
from cobra.models.mamba.state import MambaState

__all__ = ["MambaConfig", "MambaLM", "MambaState"]
