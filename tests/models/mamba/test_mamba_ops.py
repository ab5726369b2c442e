"""Every implementation of Mamba's operations against a float64 reference that follows the definition."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cobra.models.mamba.ops import cuda_ops, torch_ops

WIDTH, STATES, TAPS = 20, 5, 4
ALL = ("torch", "numba", "cuda with stand-ins")


def load_standins():
    spec = importlib.util.spec_from_file_location("vendor_standins", Path(__file__).with_name("vendor_standins.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get_ops(name, monkeypatch):
    """Return an implementation; the CUDA one with stand-ins of the vendor's signatures in place of the kernels."""
    if name == "torch":
        return torch_ops
    if name == "numba":
        pytest.importorskip("numba")
        from cobra.models.mamba.ops import numba_ops

        return numba_ops
    standins = load_standins()
    monkeypatch.setattr(cuda_ops, "kernels", lambda: standins)
    return cuda_ops


@pytest.fixture(params=ALL)
def ops(request, monkeypatch):
    return get_ops(request.param, monkeypatch)


def scan_inputs(batch=2, steps=13, dt_scale=1.0, a_scale=1.0, width=WIDTH, states=STATES):
    generator = torch.Generator().manual_seed(steps)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return dict(
        u=normal(batch, steps, width),
        dt=normal(batch, steps, width) * dt_scale,
        A_log=normal(width, states) + math.log(a_scale),
        B=normal(batch, steps, states),
        C=normal(batch, steps, states),
        D=normal(width),
        z=normal(batch, steps, width),
        dt_bias=normal(width),
        state=normal(batch, width, states),
    )


def conv_inputs(batch=2, steps=13, width=WIDTH):
    generator = torch.Generator().manual_seed(steps)
    shapes = dict(x=(batch, steps, width), weight=(width, TAPS), bias=(width,), window=(batch, width, TAPS))
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def reference_scan(u, dt, A_log, B, C, D, z, dt_bias, state=None, valid=None):
    """The recurrence, one step after the other, in float64."""
    u, dt, A, B, C, D, z, dt_bias = (tensor.double() for tensor in (u, dt, -A_log.double().exp(), B, C, D, z, dt_bias))
    delta = F.softplus(dt + dt_bias)
    if valid is not None:
        delta = delta * valid[..., None]
    h = torch.zeros(u.shape[0], *A.shape, dtype=torch.double) if state is None else state.double()
    ys = []
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1) + D * u[:, t])
    return torch.stack(ys, 1) * F.silu(z), h


def reference_conv(x, weight, bias=None, window=None):
    """The sum over taps, in float64."""
    before = torch.zeros(len(x), x.shape[2], TAPS) if window is None else window
    padded = torch.cat([before[:, :, 1:], x.transpose(1, 2)], -1).double()
    offset = None if bias is None else bias.double()
    return F.silu(F.conv1d(padded, weight.double().unsqueeze(1), offset, groups=x.shape[2])).transpose(1, 2)


def assert_close(actual, expected, tolerance=5e-6, what=""):
    scale = max(1.0, expected.abs().max().item())
    assert actual.isfinite().all(), what
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=tolerance * scale, msg=lambda text: f"{what}: {text}"
    )


def with_gradients(function, inputs, keep=None):
    """Return what a function gives, and the gradients of a sum of it with fixed weights; `keep` masks positions."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    found = function(**leaves)
    outputs = found if isinstance(found, tuple) else (found,)
    generator = torch.Generator().manual_seed(1)
    total = 0.0
    for place, output in enumerate(outputs):
        weights = torch.randn(output.shape, generator=generator)
        if keep is not None and place == 0:
            weights, output = weights * keep[..., None], output.masked_fill(~keep[..., None], 0.0)
        total = total + (output.double() * weights).sum()
    total.backward()
    return [output.detach() for output in outputs], {name: leaf.grad for name, leaf in leaves.items()}


def compare_scan(ops, inputs, valid=None, tolerance=5e-6):
    """Compare outputs, last states and the gradients of all inputs with those of the reference."""

    def own(**values):
        return ops.selective_scan(**{"state": None, **values}, valid=valid)

    def expected(**values):
        return reference_scan(**values, valid=valid)

    (y, last), gradients = with_gradients(own, inputs, valid)
    (expected_y, expected_last), expected_gradients = with_gradients(expected, inputs, valid)
    assert y.dtype == inputs["u"].dtype and last.dtype == torch.float32
    kept = slice(None) if valid is None else valid
    assert_close(y[kept], expected_y[kept], tolerance, "y")
    assert_close(last, expected_last, tolerance, "last state")
    for name, gradient in gradients.items():
        assert gradient.dtype == inputs[name].dtype
        assert_close(gradient, expected_gradients[name], 2 * tolerance, f"gradient of {name}")


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 13, 70])
@pytest.mark.parametrize("with_state", [False, True])
def test_scan_and_its_gradients_are_those_of_the_recurrence(ops, steps, with_state):
    inputs = scan_inputs(steps=steps)
    if not with_state:
        del inputs["state"]
    compare_scan(ops, inputs)


@pytest.mark.parametrize("sizes", [dict(width=64, states=16), dict(width=16, states=1), dict(batch=1, width=80)])
def test_scan_of_other_sizes(ops, sizes):
    compare_scan(ops, scan_inputs(steps=21, **sizes))


@pytest.mark.parametrize("scales", [dict(dt_scale=100.0), dict(a_scale=10.0), dict(dt_scale=100.0, a_scale=10.0)])
def test_scan_is_exact_for_extreme_steps(ops, scales):
    compare_scan(ops, scan_inputs(steps=40, **scales))


@pytest.mark.parametrize("with_state", [False, True])
def test_scan_holds_the_state_where_rows_are_padded(ops, with_state):
    inputs = scan_inputs(batch=4)
    if not with_state:
        del inputs["state"]
    valid = torch.arange(13) < torch.tensor([13, 4, 0, 1])[:, None]
    compare_scan(ops, inputs, valid)
    _, last = ops.selective_scan(**{"state": None, **inputs}, valid=valid)
    before = inputs.get("state", torch.zeros(4, WIDTH, STATES))
    torch.testing.assert_close(last[2], before[2], rtol=0, atol=0)


def test_extreme_steps_in_rows_that_end_in_any_chunk(ops):
    inputs = scan_inputs(batch=4, steps=70, dt_scale=100.0, a_scale=10.0)
    compare_scan(ops, inputs, torch.arange(70) < torch.tensor([70, 65, 17, 1])[:, None])


def test_scan_takes_bf16(ops):
    inputs = scan_inputs(steps=20)
    inputs |= {name: inputs[name].bfloat16() for name in ("u", "dt", "B", "C", "z")}
    compare_scan(ops, inputs, tolerance=1e-2)
    _, last = ops.selective_scan(**inputs, valid=None)
    assert_close(last, reference_scan(**inputs)[1], tolerance=1e-5)


def test_scan_takes_tensors_that_are_not_contiguous(ops):
    inputs = scan_inputs()
    strided = {name: tensor.repeat_interleave(2, -1)[..., ::2] for name, tensor in inputs.items()}
    strided["z"] = torch.cat([inputs["u"], inputs["z"]], -1).chunk(2, -1)[1]
    strided["B"] = inputs["B"].transpose(0, 1).contiguous().transpose(0, 1)
    assert not any(strided[name].is_contiguous() for name in ("u", "z", "B", "C", "A_log", "state"))
    for own, expected in zip(ops.selective_scan(**strided, valid=None), reference_scan(**inputs), strict=True):
        assert_close(own, expected)

    def of_strided(**values):
        halves = {name: torch.cat([values[name]] * 2, -1).chunk(2, -1)[1] for name in inputs}
        return ops.selective_scan(**halves, valid=None)

    expected = with_gradients(reference_scan, inputs)[1]
    for name, gradient in with_gradients(of_strided, inputs)[1].items():
        assert_close(gradient, expected[name], tolerance=1e-5, what=name)
    y = ops.selective_scan(**{name: tensor.requires_grad_() for name, tensor in inputs.items()}, valid=None)[0]
    # The gradient of a sum is one number, expanded.
    y.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in inputs.values())


@pytest.mark.parametrize("chunk_elements", [1, 200, 262_144])
def test_gradients_do_not_depend_on_the_chunks(monkeypatch, chunk_elements):
    monkeypatch.setattr(torch_ops, "_CHUNK_ELEMENTS", chunk_elements)
    monkeypatch.setattr(torch_ops, "_MIN_CHUNK_STEPS", 1)
    compare_scan(torch_ops, scan_inputs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "states"), [(WIDTH, STATES), (32, 5), (48, 16)])
def test_scan_step_equals_one_step_of_the_scan(ops, dtype, width, states):
    inputs = scan_inputs(batch=3, steps=1, width=width, states=states)
    inputs |= {name: inputs[name].to(dtype) for name in ("u", "dt", "B", "C", "z")}
    expected_y, expected_last = reference_scan(**inputs)
    state = inputs.pop("state").clone()
    one = {name: tensor[:, 0] if tensor.ndim == 3 else tensor for name, tensor in inputs.items()}
    y = ops.selective_scan_step(**one, state=state)
    assert y.dtype == dtype
    assert_close(y, expected_y[:, 0], 5e-6 if dtype == torch.float32 else 1e-2)
    assert_close(state, expected_last)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 11])
@pytest.mark.parametrize("given", [("bias", "window"), ("bias",), ("window",), ()])
def test_convolution_and_its_gradients(ops, steps, given):
    inputs = {name: tensor for name, tensor in conv_inputs(steps=steps).items() if name in ("x", "weight", *given)}
    [out], gradients = with_gradients(lambda **v: ops.causal_conv(**{"bias": None, "window": None, **v}), inputs)
    [expected], expected_gradients = with_gradients(reference_conv, inputs)
    assert_close(out, expected)
    for name, gradient in gradients.items():
        assert_close(gradient, expected_gradients[name], what=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("width", [WIDTH, 32])
@pytest.mark.parametrize("with_bias", [False, True])
def test_convolution_in_steps(ops, width, with_bias, dtype, tolerance):
    inputs = conv_inputs(steps=7, width=width)
    inputs |= {name: inputs[name].to(dtype) for name in ("x", "weight", "bias")}
    x, weight, bias, window = (inputs[name] for name in ("x", "weight", "bias", "window"))
    bias = bias if with_bias else None
    moved = window.clone()
    outs = [ops.causal_conv_step(x[:, t], weight, bias, moved) for t in range(7)]
    assert {out.dtype for out in outs} == {dtype}
    assert_close(torch.stack(outs, 1), reference_conv(x, weight, bias, window), tolerance)
    torch.testing.assert_close(moved, torch.cat([window, x.float().transpose(1, 2)], -1)[:, :, -TAPS:], rtol=0, atol=0)


def test_convolution_takes_bf16_and_tensors_that_are_not_contiguous(ops):
    inputs = conv_inputs()
    halved = {name: tensor.bfloat16() for name, tensor in inputs.items()} | {"window": inputs["window"]}
    out = ops.causal_conv(**halved)
    assert out.dtype == torch.bfloat16
    assert_close(out, reference_conv(**halved), 2e-2)
    x = torch.cat([inputs["x"], inputs["x"]], -1).chunk(2, -1)[1]
    assert not x.is_contiguous()
    assert_close(ops.causal_conv(**inputs | {"x": x}), reference_conv(**inputs))


@pytest.mark.parametrize("name", ["torch", "numba"])
def test_nothing_is_read_where_there_is_nothing(name, monkeypatch):
    ops = get_ops(name, monkeypatch)
    for sizes in (dict(batch=0), dict(steps=0)):
        inputs = scan_inputs(**sizes)
        y, last = ops.selective_scan(**inputs, valid=None)
        assert y.shape == inputs["u"].shape
        torch.testing.assert_close(last, inputs["state"])
        assert ops.causal_conv(**conv_inputs(**sizes)).numel() == 0


@pytest.mark.parametrize("name", ["torch", "numba"])
def test_scan_stays_in_fp32_under_autocast(name, monkeypatch):
    """What trains on a CUDA device without the vendor kernels; there autocast would round the products inside."""
    with torch.autocast("cpu", torch.bfloat16):
        compare_scan(get_ops(name, monkeypatch), scan_inputs(steps=20))
