"""Reading weights: Cobra's `.pt`, safetensors and state-spaces' files, without unpickling objects, strictly checked."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cobra.util.errors import UserError

MODULE_KEYS = ("vision_backbone", "llm_backbone", "projector")

# Tensors by module, then by name within it.
Checkpoint = dict[str, dict[str, Tensor]]

_HEAD, _EMBEDDING = "llm.lm_head.weight", "llm.backbone.embedding.weight"
# Names in a message before it is cut short.
_NAMED = 6


def read_tensors(path: Path) -> dict:
    """Read a `.safetensors` or torch file on the CPU; nothing is unpickled but tensors and plain containers.

    Raises:
        UserError: The file is absent, damaged, or needs unpickling of objects.
    """
    if not path.is_file():
        raise UserError(f"the checkpoint does not exist: {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, and unpickling objects could run foreign code, so it is refused "
            f"({' '.join(str(error).split())[:200]}): save only the weights, as "
            'torch.save({"model": {"projector": ..., "llm_backbone": ...}}, path)'
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is damaged, or not a .pt or .safetensors file "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of a vision-language model.

    Args:
        path: Cobra's `.pt` (`{"model": {module: state dict}}`) or a `.safetensors` file with names `module.name`.

    Returns:
        Tensors by module (`projector`, `llm_backbone`, `vision_backbone`), then by name.

    Raises:
        UserError: See :func:`read_tensors`; or there is no module of this kind in it.
    """
    values = read_tensors(path)
    modules: Checkpoint = {}
    if path.suffix == ".safetensors":
        for name, tensor in values.items():
            module, _, rest = name.partition(".")
            modules.setdefault(module, {})[rest] = tensor
    elif isinstance(values, dict) and isinstance(values.get("model"), dict):
        modules = values["model"]
    known = {key: value for key, value in modules.items() if key in MODULE_KEYS and isinstance(value, dict)}
    if not known:
        found = ", ".join(list(values)[:_NAMED]) if isinstance(values, dict) else type(values).__name__
        raise UserError(
            f"{path} is not a checkpoint of Cobra: expected the modules {', '.join(MODULE_KEYS)}, found {found}"
        )
    if "llm_backbone" in known and _HEAD not in known["llm_backbone"] and _EMBEDDING in known["llm_backbone"]:
        known["llm_backbone"][_HEAD] = known["llm_backbone"][_EMBEDDING]
    return known


def read_llm_weights(path: Path) -> dict[str, Tensor]:
    """Read a Mamba's weights under state-spaces' names, from its own or transformers' format.

    A file of a whole vision-language model serves as well: its `llm_backbone` is taken.
    """
    values = read_tensors(path)
    prefix = "llm_backbone.llm."
    values = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)} or values
    renamed = {name.replace("backbone.embeddings.", "backbone.embedding."): value for name, value in values.items()}
    renamed.setdefault("lm_head.weight", renamed.get("backbone.embedding.weight"))
    return renamed


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], name: str, where: Path | str) -> bool:
    """Copy tensors into a module whose names and shapes must be the same; the module's dtypes stay.

    Args:
        module: Changed in place.
        tensors: By name.
        name: The module's name, for errors.
        where: What the tensors were read from, for errors.

    Returns:
        Whether any value differs from what the module held before.

    Raises:
        UserError: Names or shapes differ; the first few are listed.
    """
    own = module.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & tensors.keys()
        if tensors[key].shape != own[key].shape
    ]
    problems = [
        f"{label}: {', '.join(names[:_NAMED])}{f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''}"
        for label, names in (("missing", missing), ("not known here", unknown), ("of another shape", sorted(shapes)))
        if names
    ]
    if problems:
        raise UserError(
            f"the {name} in {where} is of another architecture than the model that was asked for; {'; '.join(problems)}"
            ". Choose the --model.type (or the fields under --model) that the checkpoint was made with"
        )
    changed = any(not torch.equal(own[key].cpu(), tensors[key].to(own[key].dtype).cpu()) for key in own)
    module.load_state_dict(tensors)
    return changed
