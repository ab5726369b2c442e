"""Checkpoints of runs with low-rank adapters: found together with the weights beneath, and merged into them.

Such a checkpoint holds, as `lora`, the adapters' weights in place of the language model's. The run directory's
`config.json` says how they are scaled, and its `provenance.json` what the run started from.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from cobra.models.backbones.llm.specs import llm_spec
from cobra.models.checkpoint import Checkpoint, read_checkpoint
from cobra.models.load import PROVENANCE, find_checkpoint, model_fields, run_folder
from cobra.models.materialize import get_llm_backbone_and_tokenizer
from cobra.util.errors import UserError
from cobra.util.files import read_json, sha256_file

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def merge_adapter(llm: dict[str, Tensor], adapter: dict[str, Tensor], scaling: float, where: str) -> dict[str, Tensor]:
    """Fold adapters into the weights that they adapt: W + scaling * B @ A, in fp32.

    Args:
        llm: A language model's weights by name; not changed.
        adapter: A (rank, in) under `<layer>.lora_A.weight` and B (out, rank) under `<layer>.lora_B.weight`.
        scaling: Alpha divided by the rank.
        where: What the adapters were read from, for errors.

    Returns:
        The weights by name; those without an adapter are the given tensors.

    Raises:
        UserError: An adapter is incomplete, has no layer, or is of another shape than its layer.
    """
    merged = dict(llm)
    for name in adapter:
        layer, _, side = name.rpartition(".lora_")
        down, up, weight = adapter.get(layer + _DOWN), adapter.get(layer + _UP), llm.get(f"{layer}.weight")
        if side not in ("A.weight", "B.weight") or down is None or up is None:
            raise UserError(f"the adapters in {where} are not whole: {name!r} has no counterpart")
        if weight is None:
            raise UserError(f"the adapters in {where} are of another model: it has no {layer}.weight")
        if down.ndim != 2 or up.shape != (weight.shape[0], len(down)) or down.shape[1:] != weight.shape[1:]:
            raise UserError(
                f"the adapters in {where} are of another model: {tuple(up.shape)} times {tuple(down.shape)} is not of "
                f"the shape {tuple(weight.shape)} of {layer}.weight"
            )
        merged[f"{layer}.weight"] = weight.float() + scaling * (up.float() @ down.float())
    return merged


def merge_into_base(path: Path, modules: Checkpoint, adapter: dict[str, Tensor]) -> Checkpoint:
    """Complete a run's checkpoint by the weights that its adapters were trained on, with the adapters merged.

    Args:
        path: The checkpoint; the run's `config.json` and `provenance.json` lie in one of the two folders above it.
        modules: What it holds beside the adapters.
        adapter: The adapters' weights by name.

    Returns:
        The modules of the run's start, those of the checkpoint in their place, and the merged language model.

    Raises:
        UserError: The run's files are missing or not as they must be, or the weights of its start are gone or changed.
    """
    folder = run_folder(path)
    config = read_json(folder / "config.json", "the run's config.json")
    scaling = _scaling(config, folder)
    base = _read_start(folder, config)
    llm = base["llm_backbone"] if "llm_backbone" in base else _bare_language_model(folder)
    return base | modules | {"llm_backbone": merge_adapter(llm, adapter, scaling, str(path))}


def _scaling(config: Any, folder: Path) -> float:
    lora = config.get("lora") if isinstance(config, dict) else None
    rank, alpha = (lora.get("rank"), lora.get("alpha")) if isinstance(lora, dict) else (None, None)
    if type(rank) is not int or rank < 1 or type(alpha) is not int or alpha < 1:
        raise UserError(
            f"{folder / 'config.json'} has lora.rank {rank!r} and lora.alpha {alpha!r}, and the run's checkpoint holds "
            "adapters: take the config.json that scripts/pretrain.py wrote for this run"
        )
    return alpha / rank


def _read_start(folder: Path, config: Any) -> Checkpoint:
    """Read the checkpoint that a run started from; empty where it started from the bare backbones."""
    provenance = read_json(folder / PROVENANCE, "the record of what the run started from")
    weights = provenance.get("weights") if isinstance(provenance, dict) else None
    if not isinstance(weights, dict) or not {"path", "sha256"} <= weights.keys():
        raise UserError(
            f"{folder / PROVENANCE} does not say, as weights.path and weights.sha256, what the run started from"
        )
    if weights["path"] is None:
        return {}
    path = _find_start(Path(str(weights["path"])), config.get("pretrained_checkpoint"), folder)
    if sha256_file(path) != weights["sha256"]:
        raise UserError(
            f"{path} is not the file any more that the adapters of {folder} were trained on (its SHA-256 was "
            f"{weights['sha256']}): put that one back; runs with adapters should start from files that stay, like "
            "checkpoints with a step in their name"
        )
    return read_checkpoint(path)


def _find_start(path: Path, given: str | None, folder: Path) -> Path:
    """Return where a run's start lies now: where it lay, or where what the user gave leads to today."""
    if path.is_file():
        return path
    problem = ""
    if given is not None:
        try:
            return find_checkpoint(given).path
        except UserError as error:
            problem = f", and {given!r} cannot be found either ({error})"
    raise UserError(
        f"the run {folder} has only adapters, for the weights of {path}, which are gone{problem}: put them back"
    )


def _bare_language_model(folder: Path) -> dict[str, Tensor]:
    fields = model_fields(folder / "config.json")
    identifier = fields["llm_backbone_id"]
    if not llm_spec(identifier).pretrained:
        raise UserError(
            f"the adapters of {folder} were trained on the random initial values of {identifier}, which no file holds"
        )
    backbone, _ = get_llm_backbone_and_tokenizer(identifier, fields["llm_max_length"])
    return backbone.state_dict()
