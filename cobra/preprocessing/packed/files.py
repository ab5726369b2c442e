"""Find the files of packed rows: Parquet files, and the Arrow files of a folder that `save_to_disk` wrote."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cobra.util.errors import UserError
from cobra.util.files import read_json
from cobra.util.printable import listed

PARQUET, ARROW = ".parquet", ".arrow"
_STATE = "state.json"
_SPLITS = "dataset_dict.json"
# As the hub names the files of a split: train-00000-of-00012.parquet.
_PART = re.compile(r"(?P<split>.+)-[0-9]+-of-[0-9]+")
# Bytes that are hashed of a file: its end, where Parquet has its sizes and statistics, and pieces spread over it.
_PIECE, _PIECES, _END = 2**16, 1024, 2**20


def is_packed(path: Path) -> bool:
    """Return True if a path is a Parquet or Arrow file, a folder of Parquet files, or one that `save_to_disk` wrote."""
    if path.is_dir():
        return any((path / name).is_file() for name in (_STATE, _SPLITS)) or bool(_parquet_files(path))
    return path.suffix.lower() in (PARQUET, ARROW) and path.is_file()


def packed_files(path: Path) -> list[Path]:
    """Return the files of packed rows, in their order.

    Raises:
        UserError: The path is a folder of several splits (each is named), or has no such file, or its `state.json`
            names one that is absent or elsewhere.
    """
    if not path.is_dir():
        return [path]
    if (path / _SPLITS).is_file():
        splits = read_json(path / _SPLITS, "the list of splits", "Expected is a folder of `save_to_disk`.")
        names = splits.get("splits") if isinstance(splits, dict) else None
        folders = [str(path / str(name)) for name in names] if isinstance(names, list) else ["none"]
        raise UserError(f"{path} holds a folder for each split: name one of them ({listed(folders)})")
    if (path / _STATE).is_file():
        return _arrow_files(path)
    files = _parquet_files(path)
    if not files:
        raise UserError(f"{path} holds no Parquet file")
    parts = (_PART.fullmatch(file.stem) for file in files)
    if len(splits := {part["split"] for part in parts if part is not None}) > 1:
        raise UserError(
            f"{path} holds the Parquet files of several splits ({listed(sorted(splits))}): put those of one into a "
            f"folder of their own (links will do) and name that"
        )
    return files


def _arrow_files(folder: Path) -> list[Path]:
    remedy = "Save the data set again: save_to_disk writes it."
    state = read_json(folder / _STATE, "the list of Arrow files", remedy)
    entries = state.get("_data_files") if isinstance(state, dict) else None
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries or ()]
    if not names:
        raise UserError(f"{folder / _STATE} names no file under `_data_files`. {remedy}")
    files = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{folder / _STATE} names the file {name!r}, which is not in that folder. {remedy}")
        files.append(folder / name)
    return files


def _parquet_files(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] not in "._")
        found += [Path(parent, name) for name in sorted(names) if name[0] != "." and name.lower().endswith(PARQUET)]
    return found


def sampled_sha256(files: Sequence[Path]) -> str:
    """Return a SHA-256 of files' sizes, ends and pieces spread over them; of up to 64 MiB every byte counts.

    The rows of 160 GB can be told apart by it in a second, where hashing them takes minutes at each start.
    """
    total = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        total.update(f"{size} ".encode())
        with file.open("rb") as stream:
            for start in range(0, size, max(_PIECE, size // _PIECES)):
                stream.seek(start)
                total.update(stream.read(_PIECE))
            stream.seek(max(size - _END, 0))
            total.update(stream.read(_END))
    return total.hexdigest()
