"""The Triton kernels of convolution, steps and norm against PyTorch's operations, run by Triton's interpreter.

Not collected with the others: kernels are interpreted or compiled for a whole process, so `test_triton_ops.py` runs
this file in one of its own.
"""

import pytest
import torch

from cobra.models.mamba import MambaConfig, MambaLM, MambaState
from cobra.models.mamba.ops import ops_for, torch_ops, triton_conv, triton_norm, triton_ops, triton_step, use_op
from cobra.util.errors import UserError

TAPS = 4
# Of outputs and gradients: what the order of sums explains; the interpreter cuts bf16 off where a GPU rounds it.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1.6e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
# Those that find nearly everything; the others are slow, and run with `make soak`.
QUICK = {(torch.float64, 17, 40, True), (torch.float64, 1, 1, True), (torch.bfloat16, 15, 31, False)}


def convolutions():
    """Yield every dtype with every size, with and without bias and window."""
    for dtype in TOLERANCE:
        for steps, width in ((1, 1), (15, 31), (16, 32), (17, 40), (37, 40)):
            for given in (True, False):
                slow = () if (dtype, steps, width, given) in QUICK else pytest.mark.slow
                yield pytest.param(dtype, steps, width, given, marks=slow)


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64).to(dtype)


def assert_close(actual, expected, tolerance, what=""):
    assert actual.shape == expected.shape and actual.isfinite().all(), what
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    error = (actual.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
    assert error <= tolerance * scale, f"{what}: {error:.2e}"


def run(function, leaves, out_grads=None):
    """Return a function's outputs and gradients of its leaves; an expanded gradient, as that of a sum is."""
    leaves = {name: None if leaf is None else leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    outputs = function(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = out_grads or [torch.ones((), dtype=output.dtype).expand(output.shape) for output in outputs]
    torch.autograd.backward(outputs, grads)
    return [output.detach() for output in outputs], {k: leaf.grad for k, leaf in leaves.items() if leaf is not None}


def compare(function, expected, leaves, out_grads=None):
    """Compare outputs and all gradients of two functions, each as its dtype allows; the second one's are fp64."""
    exact = {name: None if leaf is None else leaf.double() for name, leaf in leaves.items()}
    exact_grads = None if out_grads is None else [grad.double() for grad in out_grads]
    outputs, gradients = run(function, leaves, out_grads)
    expected_outputs, expected_gradients = run(expected, exact, exact_grads)
    for place, (output, other) in enumerate(zip(outputs, expected_outputs, strict=True)):
        assert_close(output, other, TOLERANCE[output.dtype], f"output {place}")
    for name, gradient in gradients.items():
        assert gradient.dtype == leaves[name].dtype
        assert_close(gradient, expected_gradients[name], TOLERANCE[gradient.dtype], name)


@pytest.mark.parametrize(("dtype", "steps", "width", "given"), convolutions())
def test_convolution(dtype, steps, width, given):
    leaves = {"xz": draw(2, steps, 2 * width, dtype=dtype), "weight": draw(width, TAPS, dtype=dtype)}
    leaves["bias"] = draw(width, dtype=dtype) if given else None
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves["window"] = draw(2, width, TAPS, dtype=wide) if given else None
    out_grads = [draw(2, steps, width, dtype=dtype, seed=1)] if given else None

    def of(ops):
        # The second half of a wider tensor, as the mixer's inputs are.
        return lambda xz, **others: ops.causal_conv(xz[..., width:], **others)

    compare(of(triton_ops), of(torch_ops), leaves, out_grads)


def test_convolution_over_several_programs(monkeypatch):
    """Where rows are long, programs begin amid one, and their sums are added up."""
    monkeypatch.setattr(triton_conv, "_LEAST_SPAN", 8)
    leaves = {"x": draw(1, 21, 300, dtype=torch.float64), "weight": draw(300, TAPS, dtype=torch.float64)}
    leaves |= {"bias": draw(300, dtype=torch.float64), "window": draw(1, 300, TAPS, dtype=torch.float64)}
    compare(triton_ops.causal_conv, torch_ops.causal_conv, leaves, [draw(1, 21, 300, dtype=torch.float64)])


def test_convolution_in_two_parts_and_in_steps_is_the_whole_one():
    x, weight, bias = draw(2, 11, 40), draw(40, TAPS), draw(40)
    window = draw(2, 40, TAPS)
    whole = triton_ops.causal_conv(x, weight, bias, window)
    moved = window.clone()
    steps = torch.stack([triton_ops.causal_conv_step(x[:, t], weight, bias, moved) for t in range(11)], 1)
    assert torch.equal(steps, whole)
    assert torch.equal(moved, x[:, -TAPS:].transpose(1, 2))
    second = triton_ops.causal_conv(x[:, 7:], weight, bias, x[:, 3:7].transpose(1, 2))
    assert torch.equal(second, whole[:, 7:])


def step_inputs(dtype, batch, width, states):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = {name: draw(batch, 2 * width, dtype=dtype, seed=seed)[:, width:] for seed, name in enumerate("uz")}
    inputs["A_log"] = draw(width, states, dtype=wide)
    inputs |= {"D": draw(width, dtype=wide), "dt_bias": draw(width, dtype=wide) - 3.0}
    return inputs, draw(batch, width, states, dtype=wide)


@DTYPES
@pytest.mark.parametrize(("width", "states"), [(1, 4), (31, 8), (40, 16)])
def test_scan_step(dtype, width, states):
    inputs, state = step_inputs(dtype, 3, width, states)
    inputs |= {"dt": draw(3, width, dtype=dtype), "B": draw(3, states, dtype=dtype), "C": draw(3, states, dtype=dtype)}
    expected_state, wide = state.clone(), {name: torch_ops.wide(tensor) for name, tensor in inputs.items()}
    expected = torch_ops.selective_scan_step(**wide, state=expected_state)
    y = triton_ops.selective_scan_step(**inputs, state=state)
    assert y.dtype == dtype
    assert_close(y, expected, TOLERANCE[dtype], "y")
    assert_close(state, expected_state, min(TOLERANCE[dtype], 1e-6), "state")


@DTYPES
@pytest.mark.parametrize(("width", "rank", "rows"), [(32, 2, 2048), (70, 40, 1)])
def test_projected_scan_step(monkeypatch, dtype, width, rank, rows):
    monkeypatch.setattr(triton_step, "_PROGRAMS", rows)
    inputs, state = step_inputs(dtype, 3, width, 16)
    reads, weight = draw(3, rank + 32, dtype=dtype), draw(width, rank, dtype=dtype) * rank**-0.5
    dt, B, C = torch_ops.wide(reads).split([rank, 16, 16], -1)
    u, z, A_log, D, dt_bias = (inputs[name] for name in ("u", "z", "A_log", "D", "dt_bias"))
    expected_state = state.clone()
    dt, wide_u, wide_z = dt @ torch_ops.wide(weight).t(), torch_ops.wide(u), torch_ops.wide(z)
    expected = torch_ops.selective_scan_step(wide_u, dt, A_log, B, C, D, wide_z, dt_bias, expected_state)
    y = triton_step.projected_scan_step(u, reads, weight, dt_bias, A_log, D, z, state)
    assert_close(y, expected, TOLERANCE[dtype], "y")
    assert_close(state, expected_state, min(TOLERANCE[dtype], 1e-6), "state")


@DTYPES
@pytest.mark.parametrize("width", [1, 40, 600])
@pytest.mark.parametrize(("is_first", "to_wide"), [(True, True), (True, False), (False, True), (False, False)])
def test_add_and_norm(monkeypatch, dtype, width, is_first, to_wide):
    monkeypatch.setattr(triton_norm, "_PROGRAMS", 2)
    stream = torch.float32 if to_wide and dtype != torch.float64 else dtype
    leaves = {"hidden": draw(2, 3, width, dtype=dtype), "weight": draw(width, dtype=dtype, seed=1) + 2.0}
    leaves["residual"] = None if is_first else draw(2, 3, width, dtype=stream, seed=2)

    def of(ops, dtype):
        return lambda hidden, residual, weight: ops.add_norm(hidden, residual, weight, 1e-5, dtype)

    grads = [draw(2, 3, width, dtype=dtype, seed=3), draw(2, 3, width, dtype=stream, seed=4)]
    compare(of(triton_ops, stream), of(torch_ops, torch.float64), leaves, grads)
    normed, after = triton_ops.add_norm(**leaves, eps=1e-5, dtype=stream)
    assert (normed.dtype, after.dtype) == (dtype, stream)


def test_nothing_comes_of_nothing():
    weight = draw(40, TAPS).requires_grad_()
    triton_ops.causal_conv(draw(0, 3, 40), weight, None, None).sum().backward()
    assert torch.equal(weight.grad, torch.zeros(40, TAPS))
    assert triton_ops.causal_conv(draw(2, 0, 40), draw(40, TAPS), None, None).shape == (2, 0, 40)
    normed, _ = triton_ops.add_norm(draw(0, 40), draw(0, 40), draw(40), 1e-5, torch.float32)
    assert normed.shape == (0, 40)


def test_same_bits_twice():
    leaves = {"x": draw(2, 33, 40), "weight": draw(40, TAPS), "bias": draw(40), "window": draw(2, 40, TAPS)}
    first, second = (run(triton_ops.causal_conv, leaves) for _ in range(2))
    for one, two in zip((*first[0], *first[1].values()), (*second[0], *second[1].values()), strict=True):
        assert torch.equal(one, two)


@pytest.mark.slow
def test_operators_are_registered_as_pytorch_asks():
    x, weight, bias, window = draw(2, 5, 8), draw(8, TAPS), draw(8), draw(2, 8, TAPS)
    leaves = tuple(tensor.requires_grad_() for tensor in (x, weight, bias, window))
    torch.library.opcheck(triton_conv.causal_conv, leaves)
    torch.library.opcheck(triton_conv.causal_conv, (x, weight, None, None))
    torch.library.opcheck(triton_conv.causal_conv_step, tuple(t.detach() for t in (x[:, 0], weight, bias, window)))
    hidden, scale = draw(2, 3, 8).bfloat16().requires_grad_(), draw(8, seed=1).requires_grad_()
    residual = draw(2, 3, 8, seed=2).requires_grad_()
    torch.library.opcheck(triton_norm._add_norm, (hidden, residual, scale, 1e-5, torch.float32))
    torch.library.opcheck(triton_norm._add_norm, (residual, None, scale, 1e-5, torch.float32))
    inputs, state = step_inputs(torch.float32, 2, 8, 4)
    args = (inputs["u"], draw(2, 11), draw(8, 3), inputs["dt_bias"], inputs["A_log"], inputs["D"], inputs["z"], state)
    torch.library.opcheck(triton_step.projected_scan_step, args)


@pytest.mark.parametrize("with_bias", [False, True])
@torch.no_grad()
def test_a_block_in_one_call(with_bias):
    torch.manual_seed(0)
    lm = MambaLM(MambaConfig(d_model=24, n_layer=2, vocab_size=8, conv_bias=with_bias, proj_bias=with_bias)).eval()
    states = [MambaState.zeros(lm.config, 2, "cpu") for _ in range(2)]
    for step in range(3):
        inputs = draw(2, 1, 24, seed=step)
        with use_op("torch"):
            expected = lm(inputs, states[0])
        with use_op(triton_ops):
            assert_close(lm(inputs, states[1]), expected, 1e-5)
    for name, part in states[0].parts.items():
        assert_close(states[1][name], part, 1e-5, name)


def test_they_can_be_named_for_the_cpu_where_kernels_are_interpreted(monkeypatch):
    monkeypatch.setenv("COBRA_MAMBA_OP", "triton")
    assert ops_for(torch.device("cpu")) is triton_ops


@pytest.mark.slow
def test_whole_graphs_are_compiled():
    """Nothing in the operations makes PyTorch's compiler leave the graph."""
    leaves = {"x": draw(2, 5, 8), "weight": draw(8, TAPS), "bias": draw(8), "window": draw(2, 8, TAPS)}

    def block(x, weight, bias, window):
        return triton_ops.add_norm(triton_ops.causal_conv(x, weight, bias, window), x, bias, 1e-5, torch.float32)

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    first, second = run(block, leaves), run(compiled, leaves)
    for one, two in zip((*first[0], *first[1].values()), (*second[0], *second[1].values()), strict=True):
        assert torch.equal(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("taps", [1, 2, 8])
def test_convolutions_of_other_sizes(taps):
    leaves = {"x": draw(2, 13, 8, dtype=torch.float64), "weight": draw(8, taps, dtype=torch.float64)}
    leaves |= {"bias": None, "window": draw(2, 8, taps, dtype=torch.float64)}
    compare(triton_ops.causal_conv, torch_ops.causal_conv, leaves)


def test_what_the_kernels_do_not_know_is_refused():
    inputs, state = step_inputs(torch.float32, 2, 8, 5)
    inputs |= {"dt": draw(2, 8), "B": draw(2, 5), "C": draw(2, 5)}
    with pytest.raises(UserError, match="know 4, 8, 16 states a channel, not 5"):
        triton_ops.selective_scan_step(**inputs, state=state)
    with pytest.raises(UserError, match="convolve at most 8 taps, not 9"):
        triton_ops.causal_conv(draw(2, 3, 8), draw(8, 9), None, None)
    with pytest.raises(UserError, match="a row of 300,000 steps is longer"):
        triton_ops.causal_conv(torch.empty(1, 300_000, 8_000, device="meta"), draw(8, 4).to("meta"), None, None)
    with pytest.raises(UserError, match="on cpu and meta"):
        triton_ops.causal_conv(draw(2, 3, 8), draw(8, 4).to("meta"), None, None)
