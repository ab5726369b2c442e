"""Tensors of a run's state read back: nothing is unpickled but tensors and plain values, and checksums are compared."""

import io
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, Metadata
from torch.distributed.checkpoint._traverse import get_element, set_element
from torch.distributed.checkpoint.planner import ReadItem

from cobra.models.integrity import check_archive
from cobra.training.state_metadata import read_metadata


class StateReader(dcp.FileSystemReader):
    """Reads the tensors of a state; torch's own reader unpickles `.metadata`."""

    def __init__(self, path: Path) -> None:
        """Read what the state says of its tensors.

        Raises:
            OSError: A file is missing.
            ValueError: `.metadata` is damaged, or says anything else than a state's does.
        """
        super().__init__(path)
        self._metadata = read_metadata(path)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return what was read at the start; there is no other file to fall back to."""
        return self._metadata

    def _slice_file(self, file: IO[bytes], sinfo: Any) -> IO[bytes]:
        # Each tensor is an archive of its own, with checksums that torch writes and does not compare. It is read once,
        # into memory: the view that torch would read from cannot seek from its end.
        part = io.BytesIO(super()._slice_file(file, sinfo).read(sinfo.length))
        check_archive(part, f"{sinfo.relative_path}, {sinfo.length:,} bytes from {sinfo.offset:,}")
        part.seek(0)
        return part


class StatePlanner(DefaultLoadPlanner):
    """Puts what is read into place; torch's own planner unpickles all that is no tensor."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a value that is no tensor into place, of the kind that is there."""
        name = read_item.dest_index.fqn
        path = self.mappings[name]
        loaded, expected = torch.load(value, weights_only=True), get_element(self.original_state_dict, path)
        if _kind(loaded) != _kind(expected):
            raise ValueError(f"its {name} is a {type(loaded).__name__} where a {type(expected).__name__} was expected")
        set_element(self.original_state_dict, path, loaded)


def _kind(value: Any) -> Any:
    """Return a value's type, and of tuples and lists those of its items too; numbers are of one kind."""
    if isinstance(value, list | tuple):
        return type(value), [_kind(item) for item in value]
    return float if type(value) is int else type(value)
