"""Both implementations of Mamba's operations against a float64 reference that follows the definition."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cobra.models.mamba import MambaConfig, MambaLM, MambaState
from cobra.models.mamba.ops import cuda_ops, ops_for, torch_ops


def load_standins():
    spec = importlib.util.spec_from_file_location("vendor_standins", Path(__file__).with_name("vendor_standins.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["torch", "cuda with stand-ins"])
def ops(request, monkeypatch):
    """Each implementation; the CUDA one with stand-ins of the vendor's signatures in place of the kernels."""
    if request.param == "torch":
        return torch_ops
    standins = load_standins()
    monkeypatch.setattr(cuda_ops, "kernels", lambda: standins)
    return cuda_ops


def scan_inputs(batch=2, steps=13, width=6, states=4, dtype=torch.float32, dt_scale=1.0, a_scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return dict(
        u=normal(batch, steps, width).to(dtype),
        dt=(normal(batch, steps, width) * dt_scale).to(dtype),
        A=-torch.exp(normal(width, states)) * a_scale,
        B=normal(batch, steps, states).to(dtype),
        C=normal(batch, steps, states).to(dtype),
        D=normal(width),
        z=normal(batch, steps, width).to(dtype),
        dt_bias=normal(width),
    )


def reference(u, dt, A, B, C, D, z, dt_bias, state=None, valid=None):
    """The recurrence, one step after the other, in float64."""
    u, dt, A, B, C, D, z, dt_bias = (tensor.double() for tensor in (u, dt, A, B, C, D, z, dt_bias))
    delta = F.softplus(dt + dt_bias)
    if valid is not None:
        delta = delta * valid[..., None]
    h = torch.zeros(u.shape[0], *A.shape, dtype=torch.double) if state is None else state.double()
    ys = []
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1) + D * u[:, t])
    return torch.stack(ys, 1) * F.silu(z), h


def assert_close(actual, expected, tolerance=5e-6):
    scale = max(1.0, expected.abs().max().item())
    assert actual.isfinite().all()
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 13, 70])
@pytest.mark.parametrize("with_state", [False, True])
def test_scan_equals_the_recurrence(ops, steps, with_state):
    inputs = scan_inputs(steps=steps)
    state = torch.randn(2, 6, 4) if with_state else None
    y, last = ops.selective_scan(**inputs, state=state, valid=None)
    expected_y, expected_last = reference(**inputs, state=state)
    assert_close(y, expected_y)
    assert_close(last, expected_last)


@pytest.mark.parametrize("scales", [dict(dt_scale=100.0), dict(a_scale=10.0)])
def test_scan_is_exact_for_extreme_steps(ops, scales):
    inputs = scan_inputs(steps=40, **scales)
    state = torch.randn(2, 6, 4)
    y, last = ops.selective_scan(**inputs, state=state, valid=None)
    expected_y, expected_last = reference(**inputs, state=state)
    assert_close(y, expected_y)
    assert_close(last, expected_last)


def test_scan_holds_the_state_where_rows_are_padded(ops):
    inputs = scan_inputs()
    lengths = torch.tensor([13, 4])
    valid = torch.arange(13) < lengths[:, None]
    _, last = ops.selective_scan(**inputs, state=None, valid=valid)
    for row, length in enumerate(lengths.tolist()):
        cut = {k: v[row : row + 1, :length] if v.ndim == 3 else v for k, v in inputs.items()}
        assert_close(last[row], reference(**cut)[1][0])


def test_scan_takes_bf16_and_strided_inputs(ops):
    inputs = scan_inputs(dtype=torch.bfloat16, steps=20)
    y, last = ops.selective_scan(**inputs, state=None, valid=None)
    assert y.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    expected_y, expected_last = reference(**inputs)
    assert_close(y, expected_y, tolerance=1e-2)
    assert_close(last, expected_last, tolerance=1e-5)
    strided = {k: v.repeat_interleave(2, -1)[..., ::2] if v.ndim == 3 else v for k, v in scan_inputs().items()}
    assert not strided["u"].is_contiguous()
    assert_close(ops.selective_scan(**strided, state=None, valid=None)[0], reference(**scan_inputs())[0])


@pytest.mark.parametrize("chunk_elements", [1, 200, 262_144])
def test_chunked_gradients_equal_those_of_the_recurrence(monkeypatch, chunk_elements):
    monkeypatch.setattr(torch_ops, "_CHUNK_ELEMENTS", chunk_elements)
    monkeypatch.setattr(torch_ops, "_MIN_CHUNK_STEPS", 1)
    inputs = {k: v.double() for k, v in scan_inputs().items()} | {"state": torch.randn(2, 6, 4, dtype=torch.double)}
    results = []
    for function in (reference, torch_ops.selective_scan):
        leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
        y, last = function(**leaves, valid=None)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(t.shape, generator=generator, dtype=torch.double) for t in (y, last)]
        sum((t * w).sum() for t, w in zip((y, last), weights, strict=True)).backward()
        results.append({k: v.grad for k, v in leaves.items()})
    for name in inputs:
        torch.testing.assert_close(results[1][name], results[0][name], rtol=1e-9, atol=1e-9, msg=name)


def test_scan_step_equals_one_step_of_the_scan(ops):
    inputs = scan_inputs(steps=1)
    state = torch.randn(2, 6, 4)
    expected_y, expected_last = reference(**inputs, state=state)
    one = {k: v[:, 0] if v.ndim == 3 else v for k, v in inputs.items()}
    y = ops.selective_scan_step(**one, state=state)
    assert_close(y, expected_y[:, 0])
    assert_close(state, expected_last)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 11])
def test_convolution_in_one_pass_in_pieces_and_in_steps(ops, steps):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, steps, 6), torch.randn(6, 4), torch.randn(6)
    before = torch.randn(2, 6, 4)
    padded = torch.cat([before[:, :, 1:], x.transpose(1, 2)], -1)
    expected = F.silu(F.conv1d(padded, weight.unsqueeze(1), bias, groups=6)).transpose(1, 2)
    torch.testing.assert_close(ops.causal_conv(x, weight, bias, before), expected)
    window = before.clone()
    outs = [ops.causal_conv_step(x[:, t], weight, bias, window) for t in range(steps)]
    torch.testing.assert_close(torch.stack(outs, 1), expected)
    torch.testing.assert_close(window, torch.cat([before, x.transpose(1, 2)], -1)[:, :, -4:])


def test_cpu_tensors_never_go_to_the_vendor_kernels(monkeypatch):
    monkeypatch.setattr(cuda_ops, "failure", lambda index: None)
    assert ops_for(torch.device("cpu")) is torch_ops


def small_lm():
    torch.manual_seed(3)
    return MambaLM(MambaConfig(d_model=32, n_layer=3, vocab_size=50, d_state=5)).eval()


def test_the_whole_model_on_vendor_kernels_equals_pytorch(monkeypatch):
    """Training (the fused path), prefill with padding, continuation and steps, through the seam to the kernels."""
    lm, x = small_lm(), torch.randn(2, 9, 32)
    lengths = torch.tensor([9, 6])

    def run_all():
        results = [lm(x)]
        state = MambaState.zeros(lm.config, 2, "cpu")
        with torch.no_grad():
            results.append(lm(x, state, lengths)[0])
            results += [lm(x[:, :3], state), lm(x[:, :1], state), state.conv.clone(), state.ssm.clone()]
        lm.zero_grad()
        lm(x).square().sum().backward()
        return results + [p.grad.clone() for p in lm.parameters() if p.grad is not None]

    expected = run_all()
    standins = load_standins()
    monkeypatch.setattr(cuda_ops, "kernels", lambda: standins)
    monkeypatch.setattr("cobra.models.mamba.model.ops_for", lambda device: cuda_ops)
    actual = run_all()
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[1] * 12, [5, 7], [11, 1], [2, 1, 3, 6]])
def test_prefill_in_pieces_is_one_prefill(pieces):
    lm, x = small_lm(), torch.randn(2, 12, 32)
    state = MambaState.zeros(lm.config, 2, "cpu")
    outs = torch.cat([lm(piece, state) for piece in x.split(pieces, dim=1)], 1)
    torch.testing.assert_close(outs, lm(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_on_the_right_reaches_nothing_even_nan():
    lm, x = small_lm(), torch.randn(3, 10, 32)
    lengths = torch.tensor([10, 1, 6])
    padded = x.clone()
    for row, length in enumerate(lengths.tolist()):
        padded[row, length:] = torch.nan
    state = MambaState.zeros(lm.config, 3, "cpu")
    outs = lm(padded, state, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = MambaState.zeros(lm.config, 1, "cpu")
        expected = lm(x[row : row + 1, :length], alone)
        torch.testing.assert_close(outs[row, :length], expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state.conv[:, row], alone.conv[:, 0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state.ssm[:, row], alone.ssm[:, 0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_state_is_a_value():
    lm, x = small_lm(), torch.randn(2, 5, 32)
    state = MambaState.zeros(lm.config, 2, "cpu")
    lm(x, state)
    kept, branches = state.clone(), state.select(torch.tensor([1, 0, 1]))
    lm(x, state)
    assert not torch.equal(kept.ssm, state.ssm)
    torch.testing.assert_close(branches.ssm, kept.ssm[:, [1, 0, 1]])
    assert branches.batch_size == 3
    assert kept.nbytes == 4 * 3 * 2 * 64 * (4 + 5)


def test_fresh_step_sizes_are_log_uniform():
    """Without this initialisation of dt's bias the images are not learned."""
    torch.manual_seed(0)
    lm = MambaLM(MambaConfig(d_model=256, n_layer=2, vocab_size=8))
    dt = F.softplus(torch.cat([block.mixer.dt_proj.bias for block in lm.backbone.layers]))
    assert 0.001 * 0.999 <= dt.min().item() and dt.max().item() <= 0.1 * 1.001
    assert dt.log10().mean().item() == pytest.approx(-2.0, abs=0.1)


def test_config_reads_both_published_formats():
    own = MambaConfig.from_dict(
        {"d_model": 64, "n_layer": 3, "vocab_size": 505, "ssm_cfg": {"d_state": 8, "dt_rank": 6}}
    )
    other = MambaConfig.from_dict(
        {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 505, "state_size": 8, "time_step_rank": 6}
    )
    assert own == other
    assert (own.padded_vocab_size, own.rank, own.d_inner) == (512, 6, 128)
    with pytest.raises(ValueError, match="Mamba-1"):
        MambaConfig.from_dict({"d_model": 1, "n_layer": 1, "vocab_size": 8, "ssm_cfg": {"layer": "Mamba2"}})
    with pytest.raises(ValueError, match="hidden_size"):
        MambaConfig.from_dict({"width": 3})


def test_transformers_mamba_is_an_oracle():
    """Same weights, same outputs as transformers' Mamba, whose weights load under its own names."""
    from transformers import MambaConfig as TheirConfig
    from transformers import MambaForCausalLM

    torch.manual_seed(0)
    settings = dict(hidden_size=32, num_hidden_layers=2, vocab_size=48, state_size=5)
    theirs = MambaForCausalLM(TheirConfig(**settings, tie_word_embeddings=True)).eval()
    ours = MambaLM(MambaConfig.from_dict(settings)).eval()
    renamed = {k.replace("backbone.embeddings", "backbone.embedding"): v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(renamed)
    ids = torch.randint(0, 48, (2, 17))
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(ours.embed(ids))), theirs(ids).logits, rtol=1e-4, atol=1e-5)


def test_scan_stays_in_fp32_under_autocast():
    """What trains on a CUDA device without the vendor kernels; there autocast would round the products inside."""
    inputs = scan_inputs(steps=20)
    with torch.autocast("cpu", torch.bfloat16):
        y, last = torch_ops.selective_scan(**inputs, state=None, valid=None)
    expected_y, expected_last = reference(**inputs)
    assert_close(y, expected_y)
    assert_close(last, expected_last)
