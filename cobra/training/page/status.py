"""State of a run by the files in its directory: running, ended or broken off, its last save, and how to resume it."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cobra.models.run_folder import PROVENANCE
from cobra.training.preemption import Stopped
from cobra.training.run_directory import FINISHED, STOPPED
from cobra.training.run_state import RESUME, state_step, states
from cobra.util.errors import UserError
from cobra.util.files import read_json
from cobra.util.lock import LOCK, SILENT_SECONDS
from cobra.util.program import COMMAND, command_line
from cobra.util.redaction import reason

_REASON_CHARACTERS = 1000
# First words of a command that trains, as its record has them.
_PROGRAMS = ("pretrain.py", COMMAND, "__main__.py")


@dataclass(frozen=True)
class RunStatus:
    """State of a run."""

    kind: str
    """`running`, `finished`, `stopped` (in order, by request), `failed` (by an error) or `interrupted` (killed)."""
    reason: str
    """Reason of the end; empty while it runs, and where none is known."""
    started: datetime | None
    """Begin of the last start."""
    starts: int
    """Starts of the run, resumed ones included."""
    saved_step: int | None
    """Step of the newest state to resume from; None where there is none."""
    saved_at: datetime | None
    command: str
    """Command that resumes the run; empty where it is finished, or was started by another program."""


def read_record(run_dir: Path) -> dict[str, Any]:
    """Return a run's `provenance.json`; empty where it cannot be read."""
    with suppress(UserError, OSError):
        record = read_json(run_dir / PROVENANCE, "the record of the run")
        if isinstance(record, dict):
            return record
    return {}


def read_status(run_dir: Path, record: Mapping[str, Any], end: BaseException | None = None) -> RunStatus:
    """Return a run's state; `record` is its :func:`read_record`, and `end` the error that is just ending it."""
    kind, why = _kind(run_dir, end)
    resumed = record.get("resumed")
    starts = [record, *(resumed if isinstance(resumed, list) else [])]
    newest = starts[-1] if isinstance(starts[-1], dict) else record
    saved = states(run_dir / RESUME)[-1:]
    return RunStatus(
        kind,
        why,
        _time(newest.get("started")),
        len(starts),
        state_step(saved[0]) if saved else None,
        datetime.fromtimestamp(saved[0].stat().st_mtime, UTC) if saved else None,
        "" if kind in ("finished", "running") else _command(newest),
    )


def _kind(run_dir: Path, end: BaseException | None) -> tuple[str, str]:
    if (run_dir / FINISHED).is_file():
        return "finished", ""
    if end is not None:
        return "stopped" if isinstance(end, Stopped) else "failed", reason(end, _REASON_CHARACTERS)
    if (run_dir / STOPPED).is_file():
        with suppress(UserError, OSError):
            mark = read_json(run_dir / STOPPED, "the mark of the stop")
            return "stopped", str(mark.get("reason", "")) if isinstance(mark, dict) else ""
    with suppress(OSError):
        if time.time() - (run_dir / LOCK).stat().st_mtime < SILENT_SECONDS:
            return "running", ""
    return "interrupted", ""


def _time(text: object) -> datetime | None:
    with suppress(TypeError, ValueError):
        return datetime.fromisoformat(text)  # type: ignore[arg-type]
    return None


def _command(start: Mapping[str, Any]) -> str:
    words, processes = start.get("command"), start.get("processes")
    if not isinstance(words, list) or not words or words[0] not in _PROGRAMS:
        return ""
    arguments = [str(word) for word in words[1:]]
    if arguments[:1] == ["train"]:
        del arguments[0]
    return command_line("train", *arguments, processes=processes if isinstance(processes, int) else 1)
