"""The models that can be loaded by name."""

from dataclasses import dataclass
from typing import Any

from cobra.conf import ModelConfig, ModelRegistry
from cobra.conf.models import MODEL_ALIASES
from cobra.util.errors import lookup

# The hub repository of Cobra's released checkpoints: `{model_id}/config.json` and `{model_id}/checkpoints/...`.
HUB_REPOSITORY = "han1997/cobra"


@dataclass(frozen=True)
class ModelDescription:
    """Facts about a model that are known before it is loaded."""

    model_id: str
    names: tuple[str, ...]
    """Other names by which it can be asked for."""
    description: str
    config: ModelConfig


def _describe(member: ModelRegistry) -> ModelDescription:
    config_class: Any = member.value
    names = tuple(alias for alias, target in MODEL_ALIASES.items() if target == member.model_id)
    if member.model_id == "cobra+3b":
        names += ("Cobra-DINOSigLIP 3B",)
    return ModelDescription(member.model_id, names, (config_class.__doc__ or "").strip(), config_class())


MODELS: dict[str, ModelDescription] = {member.model_id: _describe(member) for member in ModelRegistry}


def find_model(id_or_name: str) -> ModelDescription | None:
    """Return the model of that id or name, or None."""
    return next((model for model in MODELS.values() if id_or_name in (model.model_id, *model.names)), None)


def available_models() -> list[str]:
    """Return the ids of all models that can be loaded by name."""
    return list(MODELS)


def available_model_names() -> list[tuple[str, list[str]]]:
    """Return every model's id with the other names by which it can be asked for."""
    return [(model.model_id, list(model.names)) for model in MODELS.values()]


def get_model_description(id_or_name: str) -> dict[str, Any]:
    """Return the facts about a model; raise a UserError that lists the known ones where there is none such."""
    model = find_model(id_or_name) or lookup(MODELS, id_or_name, "the model")
    return {
        "model_id": model.model_id,
        "names": list(model.names),
        "description": model.description,
        "vision_backbone": model.config.vision_backbone_id,
        "llm_backbone": model.config.llm_backbone_id,
        "arch_specifier": model.config.arch_specifier,
        "image_resize_strategy": model.config.image_resize_strategy,
    }
