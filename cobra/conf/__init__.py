"""Configurations of models and datasets, as `draccus` choice registries."""

from cobra.conf.datasets import DatasetConfig, DatasetRegistry
from cobra.conf.models import ModelConfig, ModelRegistry

__all__ = ["DatasetConfig", "DatasetRegistry", "ModelConfig", "ModelRegistry"]
