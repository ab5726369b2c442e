"""The Triton kernels of convolution, steps and norm, each form of Triton in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FOLDER = Path(__file__).parent / "interpreted"


def interpret(cases, *arguments):
    """Run cases with interpreted kernels; it is chosen for a whole process, before kernels are defined."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / cases), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_kernels_compute_what_pytorch_does():
    interpret("cases_triton_ops.py")


@pytest.mark.slow
def test_kernels_compute_what_pytorch_does_in_all_forms():
    interpret("cases_triton_ops.py", "-m", "slow")


@pytest.mark.slow
def test_models_train_and_answer_as_by_pytorch():
    interpret("cases_triton_model.py")
