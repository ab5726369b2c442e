"""Extensions are imported by the test that needs them, and what they register is taken out again after it."""

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
from draccus import ChoiceRegistry

from cobra.conf import DatasetConfig, ModelConfig
from cobra.evaluation.benchmark import TASKS
from cobra.evaluation.metrics.base import EXTRA_METRICS
from cobra.models.backbones.llm.specs import LLM_BACKBONES
from cobra.models.backbones.vision.specs import VISION_BACKBONES
from cobra.models.mamba.config import MIXERS
from cobra.training.objective import OBJECTIVES


def registries() -> list[dict]:
    choices: list[type[ChoiceRegistry]] = [DatasetConfig, ModelConfig]
    of_models = [LLM_BACKBONES, VISION_BACKBONES, MIXERS]
    return [*of_models, OBJECTIVES, EXTRA_METRICS, TASKS, *(kind._choice_registry for kind in choices)]


@pytest.fixture
def extend() -> Iterator[Callable[[str], ModuleType]]:
    """Import one of this folder's extensions anew."""
    before = [dict(registry) for registry in registries()]
    imported: list[str] = []

    def extend(name: str) -> ModuleType:
        sys.modules.pop(name, None)
        imported.append(name)
        return importlib.import_module(name)

    yield extend
    for registry, known in zip(registries(), before, strict=True):
        registry.clear()
        registry.update(known)
    for name in imported:
        sys.modules.pop(name, None)
