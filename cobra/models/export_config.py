"""Flags of the export; imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from cobra.util.home_paths import PathText

FORMATS = ("pt", "safetensors")


@dataclass
class ExportConfig:
    """Write a model as one folder that `cobra.load` and `--pretrained_checkpoint` take, with adapters merged."""

    checkpoint: PathText
    """Model to export: a run directory, a checkpoint file in one, or a model id."""
    output: Path
    """The folder to write; it must not exist yet."""
    format: str = "pt"
    """`pt`, Cobra's layout (checkpoints/latest-checkpoint.pt), or `safetensors` (model.safetensors)."""
    push_to: str | None = None
    """A repository of the hub, user/name, that the folder is uploaded to; it is made where there is none."""
    private: bool = True
    """Require that repository to be private."""
    hf_token: PathText = ".hf_token"
    """Name of an environment variable or path of a file that holds the hub's token."""
