"""The project's own formats, Cobra's `.pt` and safetensors: a file of all tensors, compared bit by bit when written."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cobra.export.formats import ExportedModel
from cobra.models.checkpoint import Checkpoint, read_checkpoint
from cobra.models.integrity import checksums
from cobra.models.tensors import EMBEDDING, TIED_HEAD, surface_os_errors
from cobra.util.files import atomic_path


def write(model: ExportedModel, folder: Path) -> dict[str, Any]:
    """See :class:`cobra.export.formats.Writer`."""
    path = folder / model.weights
    if path.suffix == ".safetensors":
        write_safetensors(path, model.checkpoint)
        return {}
    with atomic_path(path) as temporary, surface_os_errors(), temporary.open("wb") as file:
        torch.save({"model": model.checkpoint}, file)
    return {}


def write_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Write tensors by `module.name` with their checksums; `format` is what transformers asks for."""
    tensors = _flatten(checkpoint)
    with atomic_path(path) as temporary, surface_os_errors():
        save_file(tensors, temporary, metadata={"format": "pt", **checksums(tensors)})


def prove(model: ExportedModel, folder: Path, questions: int) -> dict[str, Any]:
    """See :class:`cobra.export.formats.Writer`; equal tensors give equal answers, so that no question is asked."""
    written, expected = _flatten(read_checkpoint(folder / model.weights)), _flatten(model.checkpoint)
    different = sorted(
        name
        for name in written.keys() | expected.keys()
        if name not in written or name not in expected or not torch.equal(written[name], expected[name])
    )
    return {
        "passed": not different,
        "compared": "tensors, bit by bit",
        "tensors": len(expected),
        "equal": len(expected) - len(different),
        "first_difference": different[0] if different else None,
    }


def _flatten(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return tensors by `module.name`; the tied head, which readers restore, is left out."""
    tensors = {}
    for module, values in checkpoint.items():
        tied = TIED_HEAD in values and EMBEDDING in values and torch.equal(values[TIED_HEAD], values[EMBEDDING])
        for name, value in values.items():
            if not (tied and name == TIED_HEAD):
                tensors[f"{module}.{name}"] = value.contiguous()
    return tensors
