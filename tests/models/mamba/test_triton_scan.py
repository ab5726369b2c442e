"""The Triton kernels of the selective scan: interpreted, compiled, and counted."""

import sys
from pathlib import Path

import pytest
from interpreter import FOLDER, interpret

pytest.importorskip("triton")
CASES = str(FOLDER / "cases_triton_scan.py")
SASS = Path(__file__).parents[3] / "benchmarks" / "gpu" / "sass.py"


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def test_scan_computes_what_pytorch_does():
    interpret(CASES)


@pytest.mark.slow
def test_scan_computes_what_pytorch_does_in_all_forms():
    interpret(CASES, "-m", "slow")


@pytest.fixture(scope="module")
def sass():
    sys.path[:0] = [str(SASS.parents[1]), str(SASS.parent)]
    try:
        import sass
    finally:
        del sys.path[:2]
    return sass


@pytest.mark.parametrize("target", ["sm_90", *(slow(name) for name in ("sm_80", "sm_100", "sm_120"))])
@pytest.mark.parametrize("dtype", ["bf16", slow("fp32")])
def test_scan_takes_no_more_of_a_gpu_than_it_did(sass, target, dtype):
    forward, backward = sass.measure("forward", target, dtype), sass.measure("backward", target, dtype)
    assert forward.registers <= 96 and forward.instructions <= 9.4 and forward.shuffles == 0
    assert backward.registers <= 255 and backward.instructions <= 28 and backward.shuffles <= 2
    assert not any(kernel.stack or kernel.spills or kernel.shared for kernel in (forward, backward))


def test_a_kernel_made_worse_is_seen(sass):
    """The count is of this kernel: of half of the states at once, so that each costs more."""
    worse = sass.measure("forward", "sm_90", unroll=1)
    assert worse.instructions > 9.4


@pytest.mark.slow
def test_scan_fits_amds_warps(sass):
    for name in ("forward", "backward"):
        kernel = sass.measure(name, "gfx942")
        assert kernel.spills == 0 and kernel.shared == 0
