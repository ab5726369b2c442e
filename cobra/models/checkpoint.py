"""Reading weights: Cobra's `.pt`, safetensors and state-spaces' files, without unpickling objects, strictly checked."""

import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor, nn

from cobra.models.integrity import DamagedError, check_archive, check_finite, check_tensors, kind_of
from cobra.util.errors import UserError
from cobra.util.mounts import can_map
from cobra.util.printable import shown

# The newest checkpoint of a run, relative to its directory.
LATEST = Path("checkpoints") / "latest-checkpoint.pt"
# The one with the lowest loss on held-out rows.
BEST = Path("checkpoints") / "best-checkpoint.pt"

MODULE_KEYS = ("vision_backbone", "llm_backbone", "projector")
# What the checkpoint of a run with adapters holds in place of the language model.
ADAPTER = "lora"

# Tensors by module, then by name within it.
Checkpoint = dict[str, dict[str, Tensor]]

TIED_HEAD, EMBEDDING = "llm.lm_head.weight", "llm.backbone.embedding.weight"
# Names in a message before it is cut short.
_NAMED = 6
# Characters of a name that a message repeats.
_NAME_LENGTH = 120
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@contextmanager
def written_by_libraries() -> Iterator[None]:
    """Raise as an OSError again what torch and safetensors make of one while they write, on a full disk say.

    torch has to write to a file of Python's own: its own tells no reason.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    except RuntimeError as error:
        said: BaseException | None = error
        while said is not None and not isinstance(said, OSError):
            said = said.__context__
        if said is None:
            raise
        raise OSError(said.errno, said.strerror) from error


def read_tensors(path: Path, verify: bool = True) -> dict:
    """Read a `.safetensors` or torch file on the CPU; nothing is unpickled but tensors and plain containers.

    Args:
        path: The file.
        verify: Compare the checksums of what it holds; False where only names and shapes are of interest.

    Raises:
        UserError: The file is absent, damaged, or needs unpickling of objects.
    """
    if not path.is_file():
        raise UserError(f"the checkpoint does not exist: {path}")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, verify)
        if not zipfile.is_zipfile(path):
            # The format of torch before 1.6, which cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True)
        if verify:
            check_archive(path, "its checksums do not match")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=can_map(path))
    # What a damaged file makes torch's reader stumble over is anything from IndexError to MemoryError.
    except Exception as error:
        raise _unreadable(path, error) from error


def _read_safetensors(path: Path, verify: bool) -> dict[str, Tensor]:
    tensors = load_file(path) if can_map(path) else load(path.read_bytes())
    if verify:
        with path.open("rb") as file:
            # The file is whole: its header has been read by the library.
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        check_tensors(tensors, header.get("__metadata__", {}), "its checksums do not match")
    return tensors


def _unreadable(path: Path, error: Exception) -> UserError:
    said = shown(" ".join(str(error).split())[:200])
    if kind := kind_of(path):
        return UserError(f"{path} is no checkpoint: it is {kind}")
    if isinstance(error, pickle.UnpicklingError):
        return UserError(
            f"{path} holds more than tensors, or is damaged; unpickling objects could run foreign code, so it is "
            f'refused ({said}): save only the weights, as torch.save({{"model": {{"projector": ..., "llm_backbone": '
            "...}}, path)"
        )
    if isinstance(error, DamagedError):
        return UserError(
            f"{path} is damaged: some of its bytes are not those that were written ({said}). Copy or fetch it again, "
            "or take an earlier checkpoint of that run"
        )
    return UserError(
        f"{path} cannot be read as a checkpoint: it is damaged, or not a .pt or .safetensors file ({said})"
    )


def read_checkpoint(path: Path, verify: bool = True) -> Checkpoint:
    """Read a checkpoint of a vision-language model.

    Args:
        path: Cobra's `.pt` (`{"model": {module: state dict}}`) or a `.safetensors` file with names `module.name`.
        verify: See :func:`read_tensors`.

    Returns:
        Tensors by module (`projector`, `llm_backbone`, `vision_backbone`), then by name. Low-rank adapters come merged
        into the language model that they were trained on.

    Raises:
        UserError: See :func:`read_tensors`; or there is no module of this kind in it; or it holds adapters, and the
            weights that belong to them cannot be had (:func:`cobra.models.adapter.merge_into_base`).
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
        found = _names([str(key) for key in values]) if isinstance(values, dict) else "none"
        lightning = isinstance(values, dict) and "pytorch-lightning_version" in values
        raise UserError(
            f"{path} is not a checkpoint of Cobra: expected the modules {', '.join(MODULE_KEYS)}, found {found}"
            f"{'; it is one of Lightning, whose weights are under state_dict' if lightning else ''}"
        )
    for key, tensors in known.items():
        _check_kinds(tensors, f"the {key} in {path}")
    if ADAPTER in modules:
        # Imported here because it reads checkpoints itself: what the run started from.
        from cobra.models.adapter import merge_into_base

        _check_kinds(modules[ADAPTER], f"the {ADAPTER} in {path}")
        known = merge_into_base(path, known, modules[ADAPTER])
    if "llm_backbone" in known and TIED_HEAD not in known["llm_backbone"] and EMBEDDING in known["llm_backbone"]:
        known["llm_backbone"][TIED_HEAD] = known["llm_backbone"][EMBEDDING]
    return known


def _check_kinds(values: object, where: str) -> None:
    """Raise a UserError unless `values` is a state dict: ordinary tensors of floating-point numbers by name."""
    if not isinstance(values, dict):
        raise UserError(f"{where} is a {type(values).__name__} where tensors by name were expected")
    for key, value in values.items():
        name = shown(repr(key), _NAME_LENGTH)
        if kind := _odd_kind(value):
            raise UserError(f"{where} holds {name}, which is not an ordinary tensor but {kind}")
        if not isinstance(key, str) or value.dtype not in _DTYPES:
            raise UserError(f"{where} holds {name} of {value.dtype} where weights by name were expected")


def _odd_kind(value: object) -> str:
    """Return what a value is other than a plain tensor on the CPU; empty where it is one."""
    if type(value) not in (Tensor, nn.Parameter):
        return f"a {type(value).__name__}"
    assert isinstance(value, Tensor)
    if value.is_nested:
        return "a nested one"
    if value.layout != torch.strided or value.device.type != "cpu":
        return f"one of {value.layout} on {value.device}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"one of {value.numel():,} numbers that repeats the few that the file holds"
    return ""


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(shown(name, _NAME_LENGTH) for name in names[:_NAMED]) + more


def read_whole_model(path: Path) -> Checkpoint:
    """Read a checkpoint that must hold at least a projector; see :func:`read_checkpoint`.

    Raises:
        UserError: See :func:`read_checkpoint`; or there is no projector in it.
    """
    checkpoint = read_checkpoint(path)
    if "projector" not in checkpoint:
        raise UserError(f"{path} holds {', '.join(checkpoint)} and no projector: it is not a whole model")
    return checkpoint


def read_llm_weights(path: Path) -> dict[str, Tensor]:
    """Read a Mamba's weights under state-spaces' names, from its own or transformers' format.

    A file of a whole vision-language model serves as well: its `llm_backbone` is taken.
    """
    values = read_tensors(path)
    _check_kinds(values, str(path))
    prefix = "llm_backbone.llm."
    values = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)} or values
    renamed = {name.replace("backbone.embeddings.", "backbone.embedding."): value for name, value in values.items()}
    if "backbone.embedding.weight" in renamed:
        renamed.setdefault("lm_head.weight", renamed["backbone.embedding.weight"])
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
        UserError: Names or shapes differ; the first few are listed. Or a value is not finite, or names of one tied
            weight differ in value.
    """
    own = module.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & tensors.keys()
        if tensors[key].shape != own[key].shape
    ]
    problems = [
        f"{label}: {_names(names)}"
        for label, names in (("missing", missing), ("not known here", unknown), ("of another shape", sorted(shapes)))
        if names
    ]
    if problems:
        raise UserError(
            f"the {name} in {where} is of another architecture than the model that was asked for; {'; '.join(problems)}"
            ". Choose the --model.type (or the fields under --model) that the checkpoint was made with"
        )
    check_finite(tensors, f"the {name} in {where}")
    _check_ties(own, tensors, f"the {name} in {where}")
    changed = any(not torch.equal(own[key].cpu(), tensors[key].to(own[key].dtype).cpu()) for key in own)
    module.load_state_dict(tensors)
    return changed


def _check_ties(own: dict[str, Tensor], tensors: dict[str, Tensor], where: str) -> None:
    """Raise a UserError where names that are one weight in the model have different values in the checkpoint."""
    first: dict[int, str] = {}
    for key, value in own.items():
        twin = first.setdefault(value.data_ptr(), key)
        if twin != key and not torch.equal(tensors[twin], tensors[key].to(tensors[twin].dtype)):
            raise UserError(f"{where} has different values of {twin} and {key}, which are one weight in this model")
