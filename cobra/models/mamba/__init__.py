"""Mamba language models: published parameter names, operations chosen by device, mixers by name, state as a value."""

from cobra.models.mamba.config import MambaConfig
from cobra.models.mamba.mamba1 import Mamba1Mixer
from cobra.models.mamba.mixer import Mixer, register_mixer
from cobra.models.mamba.model import MambaLM
from cobra.models.mamba.state import MambaState

__all__ = ["MambaConfig", "MambaLM", "MambaState", "Mixer", "register_mixer"]

register_mixer("Mamba1", Mamba1Mixer)
