"""Run directories: the names of their files, and the checkpoint that a path or a model's name stands for."""

import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cobra.models.backbones.llm.specs import TINY_FOLDER
from cobra.models.hub import fetch
from cobra.models.registry import HUB_REPOSITORY, MODELS, find_model
from cobra.util.errors import UserError, known_ones
from cobra.util.files import read_json
from cobra.util.printable import printable

# The newest checkpoint of a run, relative to its directory.
LATEST = Path("checkpoints") / "latest-checkpoint.pt"
# The one with the lowest loss on held-out rows.
BEST = Path("checkpoints") / "best-checkpoint.pt"
PROVENANCE = "provenance.json"
# Where an export in that format has its weights (:mod:`cobra.export.export`).
SAFETENSORS = "model.safetensors"
# Kind and version of a model that was exported for transformers, in its config.json.
HF_MODEL_TYPE = "cobra_vlm"
HF_VERSION = 1
# Runs that an error names.
_NAMED_RUNS = 5

# Entries of a run's configuration that its model is built of, and their types.
_FIELDS = {
    **dict.fromkeys(("model_id", "vision_backbone_id", "image_resize_strategy", "llm_backbone_id"), str),
    **{"llm_max_length": int, "arch_specifier": str},
}


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint that was found, and what kind of model it is of."""

    path: Path
    fields: dict[str, Any]
    """The entries of the model's configuration that are needed to build it."""
    is_stock: bool
    """True for a model as released, False for one that this project trained."""
    folder: Path | None = None
    """The folder with the model's config.json; None for the packaged model, which has none."""


def find_checkpoint(
    model_id_or_path: str | Path, hf_token: str | None = None, cache_dir: str | Path | None = None
) -> CheckpointSource:
    """Find a model's checkpoint and configuration.

    Args:
        model_id_or_path: A run directory, a `.pt` or `.safetensors` file in one, or a model's id or name.
        hf_token: Access token of the hub, for closed repositories.
        cache_dir: The hub's cache.

    Raises:
        UserError: It is none of these, or a file is missing.
    """
    path = Path(model_id_or_path)
    # Not Path.is_dir, which raises for what is too long to be a path.
    if os.path.isdir(path):
        _look_for_runs_inside(path)
        exported = path / SAFETENSORS
        return _from_run(path, exported if exported.is_file() else path / LATEST)
    if os.path.isfile(path):
        return _from_run(run_folder(path), path)
    model = find_model(str(model_id_or_path))
    if model is None:
        raise UserError(
            f"{str(model_id_or_path)!r} is neither a run directory, a checkpoint file nor a known model; "
            f"{known_ones(MODELS, str(model_id_or_path))}"
        )
    if model.model_id == "cobra-tiny":
        fields = {name: getattr(model.config, name) for name in _FIELDS}
        return CheckpointSource(TINY_FOLDER / "model.safetensors", fields, is_stock=True)
    config = fetch(HUB_REPOSITORY, f"{model.model_id}/config.json", hf_token, cache_dir)
    checkpoint = fetch(HUB_REPOSITORY, f"{model.model_id}/{LATEST.as_posix()}", hf_token, cache_dir)
    return CheckpointSource(checkpoint, model_fields(config.parent), is_stock=True, folder=config.parent)


def run_folder(checkpoint: Path) -> Path:
    """Return the folder with a checkpoint file's `config.json`: its own or the one above, or raise a UserError."""
    for folder in list(checkpoint.absolute().parents)[:2]:
        if (folder / "config.json").is_file():
            return folder
    raise UserError(
        f"{checkpoint} has no config.json beside it or in the folder above: put the run's config.json there, or give "
        "the run directory (config.json and checkpoints/latest-checkpoint.pt)"
    )


def _look_for_runs_inside(folder: Path) -> None:
    """Raise a UserError that names the runs in a folder of runs."""
    if (folder / "config.json").exists():
        return
    runs = sorted(config.parent for config in islice(folder.glob("*/config.json"), 100))
    if runs:
        raise UserError(
            f"{folder} is a folder of runs, and one of them was expected: {', '.join(map(str, runs[:_NAMED_RUNS]))}"
            f"{', ...' if len(runs) > _NAMED_RUNS else ''}"
        )


def _from_run(run_dir: Path, checkpoint: Path) -> CheckpointSource:
    fields = model_fields(run_dir)
    if not checkpoint.is_file():
        raise UserError(
            f"{run_dir} has neither {LATEST} nor {SAFETENSORS}: its training has saved nothing yet, or the folder was "
            "not copied whole"
        )
    return CheckpointSource(checkpoint, fields, is_stock=not (run_dir / PROVENANCE).is_file(), folder=run_dir)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a run's `config.json`, empty where it holds no object; raise a UserError where it is absent or no JSON."""
    remedy = "Give a run directory that scripts/pretrain.py has written."
    values = read_json(folder / "config.json", "the run's config.json", remedy)
    return values if isinstance(values, dict) else {}


def _check_form(config: Path, values: dict[str, Any]) -> None:
    """Refuse a folder of transformers with a model that is not this project's, or of a later form of it."""
    kind = values.get("model_type", HF_MODEL_TYPE)
    if kind != HF_MODEL_TYPE:
        raise UserError(
            f"{config} is of the model {printable(str(kind), 60)!r} of transformers, and of its models only "
            f"{HF_MODEL_TYPE!r} is read here, as the export with --format transformers writes it"
        )
    version = values.get("cobra_version", HF_VERSION)
    if type(version) is not int or not 1 <= version <= HF_VERSION:
        raise UserError(
            f"{config} is of version {printable(repr(version), 60)} of its form, and this package reads up to "
            f"{HF_VERSION}: pip install --upgrade cobra-vlm"
        )


def model_fields(folder: Path) -> dict[str, Any]:
    """Return the entries of a run's `config.json` that its model is built of.

    Raises:
        UserError: The file is absent, is not JSON, is of another model of transformers, or lacks an entry or has one
            of another type or range.
    """
    config, values = folder / "config.json", read_config(folder)
    _check_form(config, values)
    model = values.get("model")
    missing = [name for name in _FIELDS if not isinstance(model, dict) or name not in model]
    if not isinstance(model, dict) or missing:
        raise UserError(f"{config} lacks the entries {', '.join(f'model.{name}' for name in missing)}")
    for name, expected in _FIELDS.items():
        if type(model[name]) is not expected:
            raise UserError(f"{config} has model.{name} {model[name]!r}, which is not of the type {expected.__name__}")
    if model["llm_max_length"] < 1:
        raise UserError(f"{config} has model.llm_max_length {model['llm_max_length']}, which must be at least 1")
    return {name: model[name] for name in _FIELDS}
