"""Flags of the export; imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from cobra.util.home_paths import PathText


@dataclass
class ExportConfig:
    """Write a model as one folder for `cobra.load` or for other programs, adapters merged, and prove that it is equal.

    The folder appears under its name when it is whole and has passed the comparison in its `parity.json`.
    """

    checkpoint: PathText
    """Model to export: a run directory, a checkpoint file in one, an exported folder, or a model id."""
    output: Path
    """The folder to write; it must not exist yet."""
    format: str = "pt"
    """`pt`, Cobra's layout (checkpoints/latest-checkpoint.pt); `safetensors` (model.safetensors); `transformers`, which
    Hugging Face's library loads, also without this package; `onnx` (graphs, and a program that answers with onnxruntime
    alone); or `gguf` (the language model for llama.cpp)."""
    dtype: str = "fp32"
    """Kind of the exported numbers: `fp32`, for `onnx` and `gguf` also `fp16`, for `gguf` also `bf16`. The others
    keep those of the checkpoint."""
    parity: int = 64
    """Questions that the exported folder must answer as the model does, token by token; 0 leaves that out. `pt` and
    `safetensors` compare all tensors instead."""
    push_to: str | None = None
    """A repository of the hub, user/name, that the folder is uploaded to; it is made where there is none."""
    private: bool = True
    """Require that repository to be private."""
    hf_token: PathText = ".hf_token"
    """Name of an environment variable or path of a file that holds the hub's token."""
