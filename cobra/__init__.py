"""Cobra: a vision-language model on Mamba, its training on LLaVA-CoT-100k and its evaluation on COCO Captions."""

from typing import TYPE_CHECKING

from cobra.util.after_import import after_import
from cobra.util.cache import provide_cache
from cobra.util.lazy import lazy_names

if TYPE_CHECKING:
    from cobra.models.load import load
    from cobra.models.registry import available_model_names, available_models, get_model_description

# Before any library is imported that looks for its cache then.
provide_cache()

# So that transformers' Auto classes know exported models, in whichever order the two are imported.
after_import(
    [
        f"transformers.models.auto.{name}_auto"
        for name in ("configuration", "modeling", "processing", "image_processing")
    ],
    "cobra.export.hf.register:register",
)

__version__ = "0.1.0"

__all__ = ["available_model_names", "available_models", "get_model_description", "load"]

__getattr__, __dir__ = lazy_names(
    __name__, {**dict.fromkeys(__all__, "cobra.models.registry"), "load": "cobra.models.load"}
)
