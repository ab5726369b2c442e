"""The Triton kernels of convolution, steps and norm, each form of Triton in a process of its own."""

import pytest
from interpreter import FOLDER, interpret

pytest.importorskip("triton")
OPERATIONS = str(FOLDER / "cases_triton_ops.py")


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
