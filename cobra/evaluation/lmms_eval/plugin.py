"""Entry point of the group `lmms_eval.models`: tells lmms-eval where the model `cobra` is."""

from lmms_eval.models.registry_v2 import ModelManifest

_MODELS = "cobra.evaluation.lmms_eval.models"


def manifest() -> ModelManifest:
    """Return the names and classes of the model, as lmms-eval's registry wants them."""
    return ModelManifest("cobra", f"{_MODELS}.CobraSimple", f"{_MODELS}.CobraChat", aliases=("cobra-vlm",))
