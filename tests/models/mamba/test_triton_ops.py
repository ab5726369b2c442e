"""The Triton kernels of convolution, steps and norm, each form of Triton in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FOLDER = Path(__file__).parent / "interpreted"
OPERATIONS = str(FOLDER / "cases_triton_ops.py")


def interpret(*arguments):
    """Run cases with interpreted kernels; it is chosen for a whole process, before kernels are defined."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # Where nothing else is named, models on the CPU go through these kernels too.
    environment["COBRA_MAMBA_OP"] = "triton"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_kernels_compute_what_pytorch_does():
    interpret(OPERATIONS)


@pytest.mark.slow
def test_kernels_compute_what_pytorch_does_in_all_forms():
    interpret(OPERATIONS, "-m", "slow")


@pytest.mark.slow
def test_models_train_and_answer_as_by_pytorch():
    interpret(str(FOLDER / "cases_triton_model.py"))


@pytest.mark.slow
def test_golden_values_hold_through_the_kernels():
    golden = FOLDER.parents[1] / "test_golden_llm.py"
    names = ("test_golden_llm", "test_golden_llm_layers", "test_golden_mixer_prefill_and_steps")
    interpret(*(f"{golden}::{name}" for name in names))
