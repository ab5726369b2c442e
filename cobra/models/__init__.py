"""Vision towers, language models, projectors and the vision-language models built from them."""

from typing import TYPE_CHECKING

from cobra.util.lazy import lazy_names

if TYPE_CHECKING:
    from cobra.models.load import get_llm_backbone_and_tokenizer, get_vision_backbone_and_transform, get_vlm
    from cobra.models.registry import available_model_names, available_models, get_model_description

_BUILDERS = ("get_llm_backbone_and_tokenizer", "get_vision_backbone_and_transform", "get_vlm")

__all__ = [
    "available_model_names",
    "available_models",
    "get_llm_backbone_and_tokenizer",
    "get_model_description",
    "get_vision_backbone_and_transform",
    "get_vlm",
]

__getattr__, __dir__ = lazy_names(
    __name__, {**dict.fromkeys(__all__, "cobra.models.registry"), **dict.fromkeys(_BUILDERS, "cobra.models.load")}
)
