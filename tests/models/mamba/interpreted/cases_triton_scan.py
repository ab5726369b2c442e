"""The Triton kernels of the selective scan against PyTorch's, run by Triton's interpreter in a process of their own."""

import pytest
import torch

from cobra.models.mamba.ops import torch_ops, triton_ops, triton_scan

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1.6e-2}
NAMES = ("y", "last", "u", "dt", "A_log", "B", "C", "D", "dt_bias", "state", "xz")
# (warps that share the states, dtype, steps, channels, states, lengths of two rows or None, whether a first state is
# given)
QUICK = [
    (1, torch.float64, 17, 40, 4, None, True),
    (4, torch.float64, 1, 1, 4, None, True),
    (4, torch.float64, 37, 31, 8, (0, 20), True),
]
SIZES = ((1, 16), (31, 4), (32, 8), (40, 4), (8, 16))
LENGTHS = (None, (0, 0), (1, 0), None)
# Every dtype with every number of steps, of sizes and lengths that take turns; lengths end with all steps.
ALL = [
    (parts, dtype, steps, *SIZES[(place + turn) % 5], lengths and (lengths[0], steps), lengths is None)
    for parts in (1, 4)
    for turn, dtype in enumerate(TOLERANCE)
    for place, steps in enumerate((1, 15, 16, 17, 37))
    for lengths in (LENGTHS[(place + turn) % 4],)
]


def draw_inputs(dtype, steps, width, states, given):
    generator = torch.Generator().manual_seed(steps + width)

    def draw(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = {"u": draw(2, steps, width), "dt": draw(2, steps, width), "A_log": draw(width, states, dtype=wide)}
    inputs |= {"B": draw(2, steps, states), "C": draw(2, steps, states), "D": draw(width, dtype=wide)}
    inputs |= {"dt_bias": draw(width, dtype=wide) - 1, "state": draw(2, width, states, dtype=wide) if given else None}
    return inputs | {"xz": draw(2, steps, 2 * width)}, draw(2, 1, width), draw(2, width, states, dtype=wide)


def run(ops, inputs, grad, grad_last, valid):
    """Return outputs and gradients; z is a part of a wider tensor, and the gradient of y is expanded over time."""
    leaves = {name: None if x is None else x.detach().clone().requires_grad_() for name, x in inputs.items()}
    u, dt, A_log, B, C, D, bias, state, xz = leaves.values()
    y, last = ops.selective_scan(u, dt, A_log, B, C, D, xz[..., xz.shape[2] // 2 :], bias, state, valid)
    if valid is not None:
        y = y * valid.unsqueeze(-1)
    there = [leaf for leaf in leaves.values() if leaf is not None]
    grads = torch.autograd.grad([y, last], there, [grad.expand(y.shape).to(y.dtype), grad_last.to(last.dtype)])
    return [y, last, *grads]


@pytest.fixture
def split(monkeypatch):
    """Let a number of warps share the states of a channel."""
    return lambda parts: monkeypatch.setattr(triton_scan, "lookup", lambda *size: parts)


def check(dtype, steps, width, states, lengths, given):
    inputs, grad, grad_last = draw_inputs(dtype, steps, width, states, given)
    valid = None if lengths is None else torch.arange(steps) < torch.tensor(lengths)[:, None]
    actual = run(triton_ops, inputs, grad, grad_last, valid)
    exact = {name: None if x is None else x.double() for name, x in inputs.items()}
    expected = run(torch_ops, exact, grad.double(), grad_last.double(), valid)
    names = [name for name in NAMES if given or name != "state"]
    for name, found, right in zip(names, actual, expected, strict=True):
        error = (found.double() - right).abs().max().item() / (right.abs().max().item() or 1.0)
        # Of bf16 inputs too, what is fp32 is off by fp32's errors only; what is bf16 is cut off by the interpreter.
        assert error <= TOLERANCE[found.dtype], (name, error)


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_scan(split, case):
    split(case[0])
    check(*case[1:])


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=str)
def test_scan_in_all_forms(split, case):
    split(case[0])
    check(*case[1:])


@pytest.mark.slow
def test_two_parts_are_the_whole():
    inputs, _, _ = draw_inputs(torch.float64, 33, 33, 4, True)
    u, dt, A_log, B, C, D, bias, state, xz = inputs.values()
    z = xz[..., 33:]
    y, last = triton_ops.selective_scan(u, dt, A_log, B, C, D, z, bias, state, None)
    parts, h = [], state
    for part in (slice(0, 18), slice(18, 33)):
        out, h = triton_ops.selective_scan(
            u[:, part], dt[:, part], A_log, B[:, part], C[:, part], D, z[:, part], bias, h, None
        )
        parts.append(out)
    # Eight steps are one sum after the other in both.
    assert (torch.cat(parts, 1) - y).abs().max() < 1e-14 and (h - last).abs().max() < 1e-14


@pytest.mark.parametrize("parts", [1, 4])
def test_the_same_bits_twice(split, parts):
    split(parts)
    inputs, grad, grad_last = draw_inputs(torch.float32, 17, 4, 4, True)
    first, second = (run(triton_ops, inputs, grad, grad_last, None) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.slow
def test_the_operation_is_one_that_pytorch_can_trust():
    inputs, _, _ = draw_inputs(torch.float32, 3, 4, 4, True)
    u, dt, A_log, B, C, D, bias, state, xz = (x.requires_grad_() for x in inputs.values())
    arguments = (u, dt, A_log, B, C, D, xz[..., 4:].contiguous(), bias, state, None)
    torch.library.opcheck(torch.ops.cobra.selective_scan.default, arguments)
