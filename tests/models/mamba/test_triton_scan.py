"""The Triton kernels of the selective scan: interpreted, compiled, and counted."""

import sys
from pathlib import Path

import pytest
import torch
from interpreter import FOLDER, interpret

pytest.importorskip("triton")

from cobra.models.mamba.ops import triton_ops, triton_scan, triton_scan_backward, triton_sums  # noqa: E402
from cobra.models.mamba.ops.triton_table import lookup  # noqa: E402

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


@pytest.mark.parametrize("name", ["forward", slow("backward")])
@pytest.mark.parametrize("target", ["sm_90", *(slow(name) for name in ("sm_80", "sm_100", "sm_120"))])
@pytest.mark.parametrize("dtype", ["bf16", slow("fp32")])
def test_a_split_scan_is_a_quarter_of_the_work(sass, name, target, dtype):
    """A warp has a quarter of the states, and a step of one takes it little more: all the rest is divided as well."""
    kernel = sass.measure(name, target, dtype, parts=4)
    registers, instructions, shuffles, shared = (80, 10.4, 0, 4096) if name == "forward" else (255, 32.5, 2, 8192)
    assert kernel.registers <= registers and kernel.instructions <= instructions and kernel.shuffles <= shuffles
    assert kernel.stack == kernel.spills == 0 and kernel.shared <= shared


def test_a_kernel_made_worse_is_seen(sass):
    """The count is of this kernel: of half of the states at once, so that each costs more."""
    worse = sass.measure("forward", "sm_90", unroll=1)
    assert worse.instructions > 9.4


@pytest.mark.slow
def test_scan_fits_amds_warps(sass):
    """The state that a wave keeps leaves registers for others, but in the backward pass."""
    for name, waves in (("forward", 4), ("backward", 1)):
        kernel = sass.measure(name, "gfx942", parts=4)
        assert kernel.spills == kernel.stack == 0 and kernel.waves >= waves


@pytest.mark.parametrize(
    ("batch", "blocks", "steps", "architecture", "parts"),
    [
        # cobra+3b has 160 blocks of 32 channels: few rows leave a card idle, short ones take no time.
        *((1, 160, 2777, "sm_90", 4), (5, 160, 2777, "sm_90", 4), (6, 160, 2777, "sm_90", 1), (1, 160, 63, "sm_90", 1)),
        *(
            (4, 160, 2777, "sm_89", 1),
            (2, 160, 2777, "sm_75", 4),
            (3, 160, 2777, "sm_75", 1),
            (7, 160, 64, "sm_100", 4),
        ),
        *((1, 160, 2777, "sm_103", 4), (64, 80, 5, "gfx942", 4), (1, 160, 2777, "cpu", 1)),
    ],
)
def test_states_are_split_where_programs_are_few(batch, blocks, steps, architecture, parts):
    assert lookup(batch, blocks, steps, architecture) == parts


def test_both_passes_are_launched_as_the_table_says(monkeypatch):
    launches = []
    monkeypatch.setattr(triton_scan, "architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(triton_sums, "launch", lambda *args, **options: None)
    for module in (triton_scan, triton_scan_backward):
        monkeypatch.setattr(module, "launch", lambda kernel, grid, *args, **options: launches.append((grid, options)))

    def scan(batch, steps):
        u, reads = torch.zeros(batch, steps, 64, requires_grad=True), torch.zeros(batch, steps, 8)
        rates, row = torch.zeros(64, 8), torch.zeros(64)
        triton_ops.selective_scan(u, u, rates, reads, reads, row, u, row, None, None)[0].sum().backward()
        return [(grid, options["PARTS"], options["num_warps"]) for grid, options in launches[-3:]]

    assert scan(2, 64) == [((2, 2), 4, 4)] * 3
    assert scan(2, 37) == [((2, 2), 1, 1)] * 3
