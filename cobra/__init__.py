"""Cobra: a vision-language model on Mamba, its training on LLaVA-CoT-100k and its evaluation on COCO Captions."""

from typing import Any

__version__ = "0.1.0"

__all__ = ["available_model_names", "available_models", "get_model_description", "load"]


def __getattr__(name: str) -> Any:
    """Import the models when they are first asked for, so that `--help` and the data tools need no torch."""
    if name in __all__:
        import cobra.models

        return getattr(cobra.models, name)
    raise AttributeError(f"module 'cobra' has no attribute {name!r}")
