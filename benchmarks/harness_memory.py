"""Peak memory of a call, and processes of their own to measure it in."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FORGET = Path("/proc/self/clear_refs")


def can_measure_memory() -> bool:
    """Return True if this system tells the peak of a call; where it does not, say so on the error stream."""
    if not _FORGET.is_file():
        print("memory is not measured: this system has no /proc/PID/clear_refs", file=sys.stderr)
    return _FORGET.is_file()


def resident(line: str = "VmRSS") -> int:
    """Return a line of /proc/self/status in bytes: by default what is resident now."""
    return 1024 * int(Path("/proc/self/status").read_text().partition(line + ":")[2].split()[0])


def peak_of(run: Callable[[], object]) -> int:
    """Return the most resident bytes of the process during a call."""
    _FORGET.write_text("5")
    run()
    return resident("VmHWM")


def ask(file: str, config: object, **changes: object) -> Any:
    """Run a benchmark's file in a process of its own, and return the last line that it prints, as JSON.

    Args:
        file: The benchmark.
        config: Its dataclass, whose fields become flags; those that are None are left out.
        changes: To its fields.
    """
    values = vars(config) | changes
    flags = [f"--{name}={value}" for name, value in values.items() if value is not None]
    process = subprocess.run([sys.executable, file, *flags], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])
