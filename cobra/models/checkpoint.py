"""Checkpoints of vision-language models: tensors by module, with low-rank adapters merged into their base.

The checkpoint of a run with adapters holds their weights, as `lora`, in place of the language model's. The run
directory's `config.json` says how they are scaled, and its `provenance.json` what the run started from.
"""

import sys
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cobra.models.backbones.llm.backbone import build_llm_backbone
from cobra.models.backbones.llm.specs import llm_spec
from cobra.models.mamba.config import MIXERS
from cobra.models.mamba.mixer import Mixer
from cobra.models.quantized import check_quantize, dequantize_weight, quantize_weight
from cobra.models.run_folder import PROVENANCE, find_checkpoint, model_fields, read_config, run_folder
from cobra.models.tensors import EMBEDDING, TIED_HEAD, check_kinds, read_tensors
from cobra.util.errors import UserError
from cobra.util.files import read_json, sha256_file
from cobra.util.printable import listed

MODULE_KEYS = ("vision_backbone", "llm_backbone", "projector")
# Module of a checkpoint that holds adapters in place of the language model.
ADAPTER = "lora"

# Tensors by module, then by name within it.
Checkpoint = dict[str, dict[str, Tensor]]

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def read_checkpoint(path: Path, verify: bool = True) -> Checkpoint:
    """Read a checkpoint of a vision-language model.

    Args:
        path: Cobra's `.pt` (`{"model": {module: state dict}}`) or a `.safetensors` file with names `module.name`.
        verify: See :func:`read_tensors`.

    Returns:
        Tensors by module (see `MODULE_KEYS`), then by name; low-rank adapters come merged into their language model.

    Raises:
        UserError: See :func:`read_tensors`; or it has no such module, or adapters whose base cannot be had.
    """
    values = read_tensors(path, verify)
    modules: dict = {}
    if path.suffix == ".safetensors":
        for name, tensor in values.items():
            module, _, rest = name.partition(".")
            modules.setdefault(module, {})[rest] = tensor
    elif isinstance(values, dict) and isinstance(values.get("model"), dict):
        modules = values["model"]
    known: Checkpoint = {key: value for key, value in modules.items() if key in MODULE_KEYS}
    if not known:
        names = listed([str(key) for key in values]) if isinstance(values, dict) else "none"
        lightning = isinstance(values, dict) and "pytorch-lightning_version" in values
        raise UserError(
            f"{path} is not a checkpoint of Cobra: expected the modules {', '.join(MODULE_KEYS)}, found {names}"
            f"{'; it is one of Lightning, whose weights are under state_dict' if lightning else ''}"
        )
    for key, tensors in known.items():
        check_kinds(tensors, f"the {key} in {path}")
    if ADAPTER in modules:
        check_kinds(modules[ADAPTER], f"the {ADAPTER} in {path}")
        known = _merge_into_base(path, known, modules[ADAPTER])
    if "llm_backbone" in known and TIED_HEAD not in known["llm_backbone"] and EMBEDDING in known["llm_backbone"]:
        known["llm_backbone"][TIED_HEAD] = known["llm_backbone"][EMBEDDING]
    return known


def read_whole_model(path: Path) -> Checkpoint:
    """Read a checkpoint as :func:`read_checkpoint`; raise a UserError too where it holds no projector."""
    checkpoint = read_checkpoint(path)
    if "projector" not in checkpoint:
        raise UserError(f"{path} holds {', '.join(checkpoint)} and no projector: it is not a whole model")
    return checkpoint


def merge_adapter(llm: dict[str, Tensor], adapter: dict[str, Tensor], scaling: float, where: str) -> dict[str, Tensor]:
    """Fold adapters into the weights that they adapt: W + scaling * B @ A, in fp32.

    Args:
        llm: A language model's weights by name; not changed.
        adapter: A (rank, in) under `<layer>.lora_A.weight` and B (out, rank) under `<layer>.lora_B.weight`.
        scaling: Alpha divided by the rank.
        where: Source of the adapters, for errors.

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


def _merge_into_base(path: Path, modules: Checkpoint, adapter: dict[str, Tensor]) -> Checkpoint:
    """Return the modules of the run's start, the checkpoint's in their place, and the merged language model."""
    folder = run_folder(path)
    config = read_config(folder)
    lora = config.get("lora")
    rank, alpha = (lora.get("rank"), lora.get("alpha")) if isinstance(lora, dict) else (None, None)
    if type(rank) is not int or rank < 1 or type(alpha) is not int or alpha < 1:
        raise UserError(
            f"{folder / 'config.json'} has lora.rank {rank!r} and lora.alpha {alpha!r}, and the run's checkpoint holds "
            "adapters: take the config.json that scripts/pretrain.py wrote for this run"
        )
    base = _read_start(folder, config)
    llm = base["llm_backbone"] if "llm_backbone" in base else _bare_language_model(folder)
    if isinstance(lora, dict) and (kind := lora.get("quantize")) is not None:
        check_quantize(kind, f"lora.quantize in {folder / 'config.json'}:")
        llm = _as_quantized(llm, kind)
    return base | modules | {"llm_backbone": merge_adapter(llm, adapter, alpha / rank, str(path))}


def _as_quantized(llm: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return weights as training with a quantised base has had them: quantised and dequantised."""
    names = {name for mixer in MIXERS.values() for name in cast(type[Mixer], mixer).quantized_names}
    told = False
    weights = dict(llm)
    for name, weight in llm.items():
        if name.endswith(tuple(f".mixer.{layer}.weight" for layer in names)):
            if not told:
                print(
                    f"the adapters were trained over weights in {kind}: these are dequantised and merged",
                    file=sys.stderr,
                )
                told = True
            shape = len(weight), weight[0].numel()
            weights[name] = dequantize_weight(*quantize_weight(weight, kind), kind, shape, torch.float32)
    return weights


def _read_start(folder: Path, config: dict[str, Any]) -> Checkpoint:
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
    """Return the present path of a run's start: the recorded one, or where the user's own words lead to today."""
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
    fields = model_fields(folder)
    identifier = fields["llm_backbone_id"]
    if not (spec := llm_spec(identifier)).pretrained:
        raise UserError(
            f"the adapters of {folder} were trained on the random initial values of {identifier}, which no file holds"
        )
    return build_llm_backbone(identifier, spec, fields["llm_max_length"], None, load_weights=True).state_dict()
