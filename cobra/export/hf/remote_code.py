"""Code for machines without this package: its own modules, with their imports of each other made relative.

transformers copies such files, all in one folder, to its cache of modules and imports them there
(`trust_remote_code=True`). They are the source that this package runs, so that there is one truth; only the choice of
Mamba's fast operations stays behind, and PyTorch's take their place.
"""

import ast
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from cobra.util.files import write_text

_PACKAGE = "cobra"
_ROOM = f"{_PACKAGE}.export.hf."
# Modules that the folder's configuration names, and so by these names.
ENTRIES = ("configuration_cobra", "modeling_cobra", "processing_cobra")

AUTO_MAP = {
    "AutoConfig": "configuration_cobra.CobraConfig",
    "AutoModelForImageTextToText": "modeling_cobra.CobraForConditionalGeneration",
    "AutoProcessor": "processing_cobra.CobraProcessor",
    "AutoImageProcessor": "processing_cobra.CobraImageProcessor",
}

_OPS = f"{_PACKAGE}.models.mamba.ops"
# In place of what chooses among the package's kernels.
_TORCH_OPS_ALONE = f'''"""Mamba's operations: PyTorch's, on every device. The package cobra-vlm has faster ones."""

import sys
from typing import Any

from {_OPS}.torch_ops import add_norm


def ops_for(device: Any) -> Any:
    """Return the operations for tensors on a device."""
    return sys.modules[add_norm.__module__]
'''

_IMPORT = re.compile(rf"^( *from ){_PACKAGE}\.([\w.]+)( import )", re.MULTILINE)


@cache
def remote_files() -> dict[str, str]:
    """Return the text of every file by its name."""
    files: dict[str, str] = {}
    waiting = [_ROOM + name for name in ENTRIES]
    while waiting:
        module = waiting.pop()
        if (name := _file(module)) in files:
            continue
        source = _TORCH_OPS_ALONE if module == _OPS else _source(module)
        waiting += _imported(source, module)
        relative = _IMPORT.sub(lambda found: f"{found[1]}.{_stem(f'{_PACKAGE}.{found[2]}')}{found[3]}", source)
        files[name] = f"# Made by {_PACKAGE}-vlm{_version()} of its module {module}; changes belong there.\n{relative}"
    return files


def write_remote_code(folder: Path) -> None:
    """Write all files into a folder; those of the same name are replaced."""
    for name, text in remote_files().items():
        write_text(folder / name, text)


def _source(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return Path(spec.origin).read_text(encoding="utf-8")


def _imported(source: str, module: str) -> list[str]:
    """Return the modules of the package that a source imports; all must be of the form `from cobra.x import y`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            if name.partition(".")[0] == _PACKAGE:
                assert isinstance(node, ast.ImportFrom) and name != _PACKAGE, f"{module} imports {name}"
                found.append(name)
    return found


def _stem(module: str) -> str:
    """Return the name of a module's file: its own for those that the configuration names, else the whole path."""
    if module.startswith(_ROOM):
        return module.removeprefix(_ROOM)
    return module.replace(".", "_")


def _file(module: str) -> str:
    return f"{_stem(module)}.py"


def _version() -> str:
    try:
        return f" {version('cobra-vlm')}"
    except PackageNotFoundError:
        return ""
