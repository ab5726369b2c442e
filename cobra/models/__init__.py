"""Vision towers, language models, projectors and the vision-language models built of them."""

from cobra.models.load import load
from cobra.models.materialize import get_llm_backbone_and_tokenizer, get_vision_backbone_and_transform, get_vlm
from cobra.models.registry import available_model_names, available_models, get_model_description

__all__ = [
    "available_model_names",
    "available_models",
    "get_llm_backbone_and_tokenizer",
    "get_model_description",
    "get_vision_backbone_and_transform",
    "get_vlm",
    "load",
]
