"""The Triton kernels of convolution, steps and norm, each form of Triton in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
CASES = Path(__file__).parent / "interpreted" / "cases_triton_ops.py"


def interpret(*arguments):
    """Run cases with interpreted kernels; it is chosen for a whole process, before kernels are defined."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_kernels_compute_what_pytorch_does():
    interpret()


@pytest.mark.slow
def test_kernels_compute_what_pytorch_does_in_all_forms():
    interpret("-m", "slow")
