"""Triton's interpreter, in which kernels run on the CPU; it is chosen for a whole process, before they are defined."""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "interpreted"


def interpret(*arguments):
    """Run cases by pytest with interpreted kernels, which models on the CPU go through too where nothing is named."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "COBRA_MAMBA_OP": "triton"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
