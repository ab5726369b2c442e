"""Record of an archive some parts of which were deleted because their images are unpacked."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from cobra.util.errors import UserError
from cobra.util.files import atomic_path, read_json, write_json

RECORDS = ".prepare"
_STATE = "parts.json"
_DIRECTORY = "directory.bin"


@dataclass
class PartsRecord:
    """The parts as they were before the first was deleted; with the archive's directory, kept beside it in a file."""

    sizes: dict[str, int]
    """Bytes of every part by its name, in order."""
    directory_start: int
    """Offset in the archive from which on its bytes are in the file of the directory."""
    consumed: set[str] = field(default_factory=set)
    """Names of the parts that were deleted."""
    wanted: set[str] = field(default_factory=set)
    """Those of them that are needed again, because an image in them was lost or altered later."""

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Return the record of the archive in `folder`; None where no part of it was deleted.

        Raises:
            UserError: The record is damaged.
        """
        path = folder / RECORDS / _STATE
        if not path.is_file():
            return None
        value = read_json(path, "the record of deleted parts", _BEGIN_ANEW)
        try:
            record = cls(value["sizes"], value["directory_start"], set(value["consumed"]), set(value["wanted"]))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is not the record that prepare writes. {_BEGIN_ANEW}") from error
        # With every part there again, the parts speak for themselves.
        return record if any(not (folder / name).is_file() for name in record.consumed) else None

    def save(self, folder: Path) -> None:
        """Write the record, atomically and flushed to disk."""
        value = {**asdict(self), "consumed": sorted(self.consumed), "wanted": sorted(self.wanted)}
        write_json(folder / RECORDS / _STATE, value)

    def save_directory(self, folder: Path, content: bytes) -> None:
        """Write the archive's bytes from `directory_start` on."""
        with atomic_path(folder / RECORDS / _DIRECTORY) as temporary:
            temporary.write_bytes(content)

    def directory_file(self, folder: Path) -> Path:
        """Return the file with the archive's bytes from `directory_start` on.

        Raises:
            UserError: It is not there.
        """
        path = folder / RECORDS / _DIRECTORY
        if not path.is_file():
            raise UserError(f"{path} is missing, without which the archive's other parts cannot be read. {_BEGIN_ANEW}")
        return path


def consumed_parts(folder: Path) -> set[str]:
    """Return the names of parts that need not be fetched: they were deleted once all their images were unpacked.

    A part that held an image that was lost or altered since is not among them, once a run has found that out.
    """
    record = PartsRecord.load(folder)
    return record.consumed - record.wanted if record else set()


_BEGIN_ANEW = f"Delete the folder {RECORDS} beside train.jsonl and run again: the deleted parts are fetched anew."
