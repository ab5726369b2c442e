"""Files that a study is made of, told apart by their hashes: others at the same path make another study."""

from collections.abc import Callable, Mapping
from pathlib import Path

from cobra.models.run_folder import PROVENANCE
from cobra.util.errors import UserError
from cobra.util.files import read_json, sha256_file, write_json
from cobra.util.waiting import tell_waiting

START_WEIGHTS, ROWS, EXAM = "start_sha256", "rows_sha256", "exam_sha256"
"""Hashes of a study's files by name: the checkpoint that all arms start from, the training rows, and what is asked."""

# Hex digits of a hash in a message.
SHOWN = 12


class FileHashes:
    """SHA-256 of checkpoints, kept in a folder: gigabytes are read once, and again where the file has changed."""

    def __init__(self, folder: Path, say: Callable[[str], object]) -> None:
        """Read nothing yet; `say` is told what takes long."""
        self._folder, self._say = folder, say

    def sha256(self, file: Path, name: str) -> str:
        """Return the SHA-256 of a file in 64 hex digits; `name` is that of its record, one for each file."""
        # A copy may keep the time of its original's last write, but not that of the system's last change to it.
        status = file.stat()
        state = {
            "file": str(file.resolve()),
            "bytes": status.st_size,
            "times": [status.st_mtime_ns, status.st_ctime_ns],
        }
        record = self._folder / f"{name}.json"
        if record.is_file():
            kept = read_json(record, "the hash of a checkpoint", "Delete it, and it is made again.")
            if kept == state | {"sha256": kept.get("sha256")}:
                return str(kept["sha256"])
        with tell_waiting(f"hashing {file} ({status.st_size / 1e9:.1f} GB), which tells its weights apart", self._say):
            digest = sha256_file(file)
        write_json(record, state | {"sha256": digest})
        return digest


def check_origin(run_dir: Path, files: Mapping[str, str]) -> None:
    """Raise a UserError if a run was trained from other weights, or on other rows, than the hashes in `files` name."""
    record = run_dir / PROVENANCE
    if not record.is_file():
        return
    values = read_json(record, "the record of what the run was made of")
    parts = (("weights", "from weights", START_WEIGHTS), ("data", "on rows", ROWS))
    others = [
        f"{words} of sha256 {str(values[part]['sha256'])[:SHOWN]}, now {files[name][:SHOWN]}"
        for part, words, name in parts
        if values[part]["sha256"] != files[name]
    ]
    if others:
        raise UserError(
            f"{run_dir} was trained {' and '.join(others)}: it cannot be compared with what is trained now. Put the "
            "former files back, move that folder away and it is trained again, or give another --study_dir"
        )
