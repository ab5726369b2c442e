"""Knowledge of a model in a sentence, by the record of its checkpoint: data set and stage; else by its id."""

from cobra.models.registry import MODELS
from cobra.models.run_folder import read_config, run_folder
from cobra.models.vlms import CobraVLM
from cobra.util.errors import UserError
from cobra.util.printable import printable

_TINY = MODELS["cobra-tiny"]
_SHAPES = "knows rendered shapes, not photographs"
_LONGEST_NAME = 80


def knows_shapes(vlm: CobraVLM) -> bool:
    """Return True for `cobra-tiny` and what was trained from it: its towers have seen nothing but rendered scenes."""
    return vlm.vision_backbone.identifier == _TINY.config.vision_backbone_id


def model_knowledge(vlm: CobraVLM) -> str:
    """Return a sentence on what a loaded model can be asked about."""
    name, training = printable(vlm.model_id, _LONGEST_NAME), _training_of(vlm)
    if not knows_shapes(vlm):
        return f"{name}, trained on {training}." if training else f"The model is {name}."
    if vlm.is_stock:
        return f"{_TINY.model_id} {_SHAPES}; it describes them and says where they are, whatever is asked."
    return f"Trained on {training or 'rows without a record'} from {_TINY.model_id}, which {_SHAPES}."


def _training_of(vlm: CobraVLM) -> str:
    """Return the data set and the stage that a run's `config.json` names; empty where it names none."""
    try:
        config = read_config(run_folder(vlm.checkpoint_path)) if vlm.checkpoint_path else {}
    except UserError:
        return ""
    dataset, stage = config.get("dataset"), config.get("stage")
    name = dataset.get("dataset_id") if isinstance(dataset, dict) else None
    if not isinstance(name, str) or not isinstance(stage, str):
        return ""
    rows = "its owner's rows" if name == "custom" else printable(name, _LONGEST_NAME)
    return f"{rows} (stage {printable(stage, _LONGEST_NAME)})"
