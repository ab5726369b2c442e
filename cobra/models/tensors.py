"""Read tensors from weight files (Cobra's `.pt`, safetensors, state-spaces') without unpickling objects."""

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
from cobra.util.errors import UserError, os_error_behind
from cobra.util.mounts import can_map
from cobra.util.printable import listed, printable
from cobra.util.redaction import reason

TIED_HEAD, EMBEDDING = "llm.lm_head.weight", "llm.backbone.embedding.weight"
# Characters of a name that a message repeats.
_NAME_LENGTH = 120
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@contextmanager
def surface_os_errors() -> Iterator[None]:
    """Raise the OSError again that torch or safetensors wrapped in an error of its own while it wrote.

    torch has to write to a file of Python's own: its own tells no reason.
    """
    try:
        yield
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise
    except RuntimeError as error:
        if cause := os_error_behind(error):
            raise OSError(cause.errno, cause.strerror) from error
        raise


def read_tensors(path: Path, verify: bool = True) -> dict:
    """Read a `.safetensors` or torch file on the CPU; nothing is unpickled but tensors and plain containers.

    Args:
        path: The file.
        verify: Compare the checksums; False where only names and shapes are of interest.

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
    # On a damaged file torch's reader raises anything from IndexError to MemoryError.
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
    message = printable(reason(error, 200))
    if kind := kind_of(path):
        return UserError(f"{path} is no checkpoint: it is {kind}")
    if isinstance(error, pickle.UnpicklingError):
        return UserError(
            f"{path} holds more than tensors, or is damaged; unpickling objects could run foreign code, so it is "
            f'refused ({message}): save only the weights, as torch.save({{"model": {{"projector": ..., "llm_backbone": '
            "...}}, path)"
        )
    if isinstance(error, DamagedError):
        return UserError(
            f"{path} is damaged: some of its bytes are not those that were written ({message}). Copy or fetch it "
            "again, or take an earlier checkpoint of that run"
        )
    # A lone word, such as the key of a KeyError, says nothing.
    cause = f" ({message})" if " " in message else ""
    return UserError(f"{path} cannot be read as a checkpoint: it is damaged, or not a .pt or .safetensors file{cause}")


def check_kinds(values: object, where: str) -> None:
    """Raise a UserError unless `values` is a state dict: ordinary tensors of floating-point numbers by name."""
    if not isinstance(values, dict):
        raise UserError(f"{where} is a {type(values).__name__} where tensors by name were expected")
    for key, value in values.items():
        name = printable(repr(key), _NAME_LENGTH)
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


def read_module(path: Path, prefix: str) -> dict[str, Tensor]:
    """Read a module's weights from its own file, or from that of a whole model, where its names begin with `prefix`.

    Raises:
        UserError: See :func:`read_tensors`; or it holds more than weights.
    """
    values = read_tensors(path)
    check_kinds(values, str(path))
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)} or values


def read_llm_weights(path: Path) -> dict[str, Tensor]:
    """Read a Mamba's weights under state-spaces' names, from its own or transformers' format or from a whole model."""
    values = read_module(path, "llm_backbone.llm.")
    renamed = {name.replace("backbone.embeddings.", "backbone.embedding."): value for name, value in values.items()}
    if "backbone.embedding.weight" in renamed:
        renamed.setdefault("lm_head.weight", renamed["backbone.embedding.weight"])
    return renamed


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], name: str, where: Path | str) -> bool:
    """Copy tensors into a module whose names and shapes must be the same; the module's dtypes stay.

    Args:
        module: The module to fill, in place.
        tensors: Tensors by name.
        name: The module's name, for errors.
        where: Source of the tensors, for errors.

    Returns:
        True if any value differs from what the module held before.

    Raises:
        UserError: Names or shapes differ (the first few are listed), a value is not finite, or tied weights differ.
    """
    expected = module.state_dict()
    differences = {
        "missing": expected.keys() - tensors.keys(),
        "not known here": tensors.keys() - expected.keys(),
        "of another shape": [
            f"{key} {tuple(tensors[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in expected.keys() & tensors.keys()
            if tensors[key].shape != expected[key].shape
        ],
    }
    problems = [f"{label}: {listed(sorted(names))}" for label, names in differences.items() if names]
    if problems:
        raise UserError(
            f"the {name} in {where} is of another architecture than the model that was asked for; {'; '.join(problems)}"
            ". Choose the --model.type (or the fields under --model) that the checkpoint was made with"
        )
    check_finite(tensors, f"the {name} in {where}")
    _check_ties(expected, tensors, f"the {name} in {where}")
    changed = any(not torch.equal(expected[key].cpu(), tensors[key].to(expected[key].dtype).cpu()) for key in expected)
    module.load_state_dict(tensors)
    return changed


def _check_ties(expected: dict[str, Tensor], tensors: dict[str, Tensor], where: str) -> None:
    """Raise a UserError where names that are one weight in the model have different values in the checkpoint."""
    first: dict[int, str] = {}
    for key, value in expected.items():
        twin = first.setdefault(value.data_ptr(), key)
        if twin != key and not torch.equal(tensors[twin], tensors[key].to(tensors[twin].dtype)):
            raise UserError(f"{where} has different values of {twin} and {key}, which are one weight in this model")
