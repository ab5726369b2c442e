"""Registration of the model with transformers' Auto classes; :mod:`cobra.util.after_import` calls it."""

import importlib
from typing import Any

import transformers

from cobra.export.hf.configuration_cobra import CobraConfig
from cobra.export.hf.remote_code import AUTO_MAP, write_remote_code

CobraConfig.write_code = staticmethod(write_remote_code)

# Auto classes by the module that defines them.
_AUTO = {
    "configuration_auto": "AutoConfig",
    "modeling_auto": "AutoModelForImageTextToText",
    "processing_auto": "AutoProcessor",
    "image_processing_auto": "AutoImageProcessor",
}


def register(module: str) -> None:
    """Make an Auto class know this project's class, when transformers' module of it has just been imported."""
    name = _AUTO[module.rpartition(".")[2]]
    room, _, ours = AUTO_MAP[name].partition(".")
    auto: Any = getattr(transformers, name)
    chosen = getattr(importlib.import_module(f"cobra.export.hf.{room}"), ours)
    if name == "AutoConfig":
        auto.register(CobraConfig.model_type, chosen, exist_ok=True)
    elif name == "AutoImageProcessor":
        # One class for both of its kinds: it would warn of one that is absent.
        auto.register(CobraConfig, image_processor_classes={"pil": chosen, "torchvision": chosen}, exist_ok=True)
    else:
        auto.register(CobraConfig, chosen, exist_ok=True)
