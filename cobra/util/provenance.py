"""Provenance of a run: code, packages, machine, data and weights."""

import json
import platform
import subprocess  # noqa: S404 - git alone is run, with fixed arguments
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import cobra
from cobra.util.distributed import World
from cobra.util.files import sha256_file
from cobra.util.redaction import redacted

_PACKAGES = ("torch", "torchvision", "transformers", "timm", "draccus", "numpy", "pillow", "mamba-ssm", "causal-conv1d")


def package_versions(names: tuple[str, ...] = _PACKAGES) -> dict[str, str | None]:
    """Return the versions of installed packages, and None for those that are not installed."""
    versions: dict[str, str | None] = dict.fromkeys(names)
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def code_version() -> dict[str, Any]:
    """Return the package's version and, in a checkout, the commit and whether files differ from it."""
    folder = Path(cobra.__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain") if commit else None
    return {"cobra-vlm": cobra.__version__, "commit": commit, "modified": bool(changed) if commit else None}


def _git(folder: Path, *arguments: str) -> str | None:
    if not (folder.parent / ".git").exists():
        return None
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None


def describe_run(
    world: World, annotation_file: Path, data_sha256: str, rows: int, checkpoint: Path | None, loaded_modules: list[str]
) -> dict[str, Any]:
    """Return the provenance of a run as JSON values.

    `checkpoint` is what the run starts from, or None for the bare backbones; it is hashed, and `loaded_modules` are
    those taken from it.
    """
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.processor()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *map(redacted, sys.argv[1:])],
        "code": code_version(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "platform": platform.platform(),
        "device": f"{world.device.type} {device}".strip(),
        "processes": world.size,
        "data": {"path": str(annotation_file), "sha256": data_sha256, "rows": rows},
        "weights": {
            "path": None if checkpoint is None else str(checkpoint.resolve()),
            "sha256": None if checkpoint is None else sha256_file(checkpoint),
            "modules": loaded_modules,
        },
    }


def resumed_record(path: Path, start: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a resumed run: that of its beginning, which stays, with this start in `resumed`.

    Where the record at `path` cannot be read, that of this start (:func:`describe_run`) takes its place.
    """
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return start
    for name in ("data", "weights"):
        before, now = record.get(name), start[name]
        moved = isinstance(before, dict) and before.get("path") is not None and not Path(str(before["path"])).is_file()
        if moved or (isinstance(before, dict) and before.get("sha256") == now["sha256"]):
            # Where it lies today.
            record[name] = now
    again = {name: value for name, value in start.items() if name not in ("data", "weights")}
    earlier = record.get("resumed")
    return record | {"resumed": [*(earlier if isinstance(earlier, list) else []), again]}
