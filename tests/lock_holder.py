"""A process that holds a folder until it is killed."""

import subprocess
import sys
from pathlib import Path

HOLDER = """
import sys, time
from pathlib import Path
from cobra.util.lock import hold
with hold(Path(sys.argv[1]), "a test works"):
    print("held", flush=True)
    time.sleep(600)
"""


def start_holder(folder: Path) -> subprocess.Popen:
    """Return the process once it holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process
