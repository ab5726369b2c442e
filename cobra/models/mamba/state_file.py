"""Inference states as files: what a model has read of a prompt, to go on from another day.

A safetensors file with the tensors `conv` and `ssm` and, as metadata, whose state it is: the model's sizes, its dtype
and a fingerprint of its weights. From another model's state text comes that looks right and is not.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cobra.models.mamba.model import MambaLM
from cobra.models.mamba.state import MambaState
from cobra.models.tensors import surface_os_errors
from cobra.util.errors import UserError
from cobra.util.files import atomic_path
from cobra.util.printable import shown

_FORMAT = "cobra mamba state 1"
# Numbers of each parameter that the fingerprint sees, evenly spaced: training changes nearly all of them.
_SAMPLE = 1024
# Characters of what a file tells that an error repeats.
_SHOWN = 40
# Of the config; the rank is there as a number.
_SIZES = ("d_model", "n_layer", "vocab_size", "d_state", "d_conv", "expand")


def save_state(path: Path | str, state: MambaState, model: MambaLM) -> None:
    """Write a state, atomically.

    Args:
        path: The file; its folder is created.
        state: On any device.
        model: Whose state it is.

    Raises:
        UserError: The state is not one of this model's.
    """
    state.check(model.config, None)
    tensors = {"conv": state.conv.contiguous().cpu(), "ssm": state.ssm.contiguous().cpu()}
    with atomic_path(path) as temporary, surface_os_errors():
        save_file(tensors, temporary, metadata={"format": _FORMAT} | _identity(model))


def load_state(path: Path | str, model: MambaLM, batch: int | None = None) -> MambaState:
    """Read a state of a model, onto its device.

    Args:
        path: A file of :func:`save_state`.
        model: The model that is to go on.
        batch: Rows that the state must have; None is any number.

    Raises:
        UserError: The file is absent or damaged, or no state, or of another model, of other weights or dtype, or of
            another number of rows, or holds numbers that are not finite; what was found and what was expected are
            named.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the Mamba state does not exist: {path}")
    try:
        with safe_open(path, "pt", device=str(model.lm_head.weight.device)) as file:
            found, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as a Mamba state: {error}") from error
    if found.get("format") != _FORMAT or tensors.keys() != {"conv", "ssm"}:
        held = _told(", ".join(sorted(tensors)))
        raise UserError(f"{path} is not a Mamba state: it holds {held or 'nothing'}")
    _compare(path, found, _identity(model))
    state = MambaState(tensors["conv"], tensors["ssm"])
    try:
        state.check(model.config, batch)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not (state.conv.isfinite().all() and state.ssm.isfinite().all()):
        raise UserError(f"{path}: the state holds numbers that are not finite: read the prompt again")
    return state


def _compare(path: Path, found: dict[str, str], own: dict[str, str]) -> None:
    """Check that the model that wrote a state is the one that reads it; the file may tell anything."""
    theirs, ours = _read_sizes(found.get("config", "")), _read_sizes(own["config"])
    if names := [name for name in ours if theirs.get(name) != ours[name]]:
        told = (" ".join(f"{name}={_told(side.get(name))}" for name in names) for side in (theirs, ours))
        raise UserError("{}: a state of another model: it has {}, and this one has {}".format(path, *told))
    if found.get("dtype") != own["dtype"]:
        raise UserError(
            f"{path}: a state of the model in {_told(found.get('dtype'))}, and this one is in {own['dtype']}: load it "
            "in the same dtype, or read the prompt again"
        )
    if found.get("weights") != own["weights"]:
        raise UserError(
            f"{path}: a state of other weights ({_told(found.get('weights'))}) than this model's ({own['weights']}): "
            "load the checkpoint that wrote it, or read the prompt again"
        )


def _read_sizes(text: str) -> dict[str, Any]:
    """Return the sizes in a text, and none where it holds none."""
    try:
        sizes = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return sizes if isinstance(sizes, dict) else {}


def _told(value: Any) -> str:
    return shown(str(value), _SHOWN)


def _identity(model: MambaLM) -> dict[str, str]:
    """Return what tells a model from others; how its weights were drawn at first does not matter."""
    sizes = {name: getattr(model.config, name) for name in _SIZES} | {"dt_rank": model.config.rank}
    return {
        "config": json.dumps(sizes, sort_keys=True),
        "dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
        "weights": fingerprint(model),
    }


@torch.no_grad()
def fingerprint(model: MambaLM) -> str:
    """Return 16 hex digits of a sample of every parameter of a model, adapters included."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        numbers = parameter.flatten()
        sample = numbers[:: max(1, len(numbers) // _SAMPLE)].float().cpu()
        found.update(f"{name} {tuple(parameter.shape)}".encode())
        found.update(sample.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
