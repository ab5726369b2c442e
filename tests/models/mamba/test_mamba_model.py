"""The whole model: pieces, padding, long prompts and states, by each implementation of the operations."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from test_mamba_ops import ALL, get_ops

from cobra.models.mamba import MambaConfig, MambaLM, MambaState
from cobra.models.mamba.ops import cuda_ops, use_op
from cobra.util.errors import UserError


@pytest.fixture(params=ALL)
def by_op(request, monkeypatch):
    """Run the test's model by one implementation."""
    found = get_ops(request.param, monkeypatch)
    if found is cuda_ops:
        monkeypatch.setattr("cobra.models.mamba.mamba1.ops_for", lambda device: cuda_ops)
        yield request.param
        return
    with use_op(request.param):
        yield request.param


def small_lm(**sizes):
    torch.manual_seed(3)
    return MambaLM(MambaConfig(**{"d_model": 32, "n_layer": 3, "vocab_size": 50, "d_state": 5} | sizes)).eval()


def zeros(lm, batch):
    return MambaState.zeros(lm.config, batch, "cpu")


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def assert_same_state(actual, expected):
    assert_same(actual["conv"], expected["conv"])
    assert_same(actual["ssm"], expected["ssm"])


def run_everything(lm, x, lengths):
    """Training, prefill with padding, continuation, steps and gradients."""
    results = [lm(x).detach()]
    state = zeros(lm, 2)
    with torch.no_grad():
        results.append(lm(x, state, lengths)[0])
        results += [lm(x[:, :3], state), lm(x[:, :1], state), state["conv"].clone(), state["ssm"].clone()]
    lm.zero_grad()
    lm(x).square().sum().backward()
    return results + [p.grad.clone() for p in lm.parameters() if p.grad is not None]


@pytest.mark.parametrize("sizes", [{}, {"proj_bias": True, "conv_bias": False, "dt_rank": 3}, {"d_model": 24}])
def test_every_implementation_is_the_one_of_pytorch(by_op, sizes, monkeypatch):
    lm, x = small_lm(**sizes), torch.randn(2, 9, sizes.get("d_model", 32))
    actual = run_everything(lm, x, torch.tensor([9, 6]))
    monkeypatch.undo()
    with use_op("torch"):
        expected = run_everything(lm, x, torch.tensor([9, 6]))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[1] * 12, [5, 7], [11, 1], [2, 1, 3, 6]])
def test_prefill_in_pieces_is_one_prefill(by_op, pieces):
    lm, x = small_lm(), torch.randn(2, 12, 32)
    state, whole = zeros(lm, 2), zeros(lm, 2)
    outs = torch.cat([lm(piece, state) for piece in x.split(pieces, dim=1)], 1)
    assert_same(outs, lm(x, whole))
    assert_same(outs, lm(x))
    assert_same_state(state, whole)


@torch.no_grad()
@pytest.mark.parametrize("read_before", [0, 2, 7])
def test_padding_reaches_nothing_even_nan(by_op, read_before):
    lm, x, past = small_lm(), torch.randn(5, 10, 32), torch.randn(5, read_before, 32)
    lengths = torch.tensor([10, 1, 6, 2, 0])
    padded = torch.full_like(x, torch.nan)
    for row, length in enumerate(lengths.tolist()):
        padded[row, :length] = x[row, :length]
    before = zeros(lm, 5)
    if read_before:
        lm(past, before)
    state = before.clone()
    outs = lm(padded, state, lengths)
    following = lm(past[:, :1] if read_before else x[:, :1], state.clone())
    for row, length in enumerate(lengths.tolist()):
        alone = before.select(torch.tensor([row]))
        if length:
            assert_same(outs[row, :length], lm(x[row : row + 1, :length], alone)[0])
        assert_same_state(state.select(torch.tensor([row])), alone)
        assert_same(following[row : row + 1], lm((past if read_before else x)[row : row + 1, :1], alone))


def test_gradients_of_padded_rows_are_those_of_the_rows_alone(by_op):
    lm, x, weights, lengths = small_lm(), torch.randn(3, 8, 32), torch.randn(3, 8, 32), torch.tensor([8, 3, 5])
    padded, expected, found = torch.full_like(x, torch.nan), torch.zeros(()), torch.zeros(())
    for row, n in enumerate(lengths.tolist()):
        padded[row, :n] = x[row, :n]
        expected = expected + (lm(x[row : row + 1, :n])[0] * weights[row, :n]).sum()
    outs = lm(padded, None, lengths)
    for row, n in enumerate(lengths.tolist()):
        found = found + (outs[row, :n] * weights[row, :n]).sum()
    blocks = list(lm.backbone.layers.parameters())
    pairs = zip(torch.autograd.grad(found, blocks), torch.autograd.grad(expected, blocks), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@torch.no_grad()
def test_a_step_of_small_blocks_and_of_large_ones_is_one_of_the_prefill(by_op, monkeypatch):
    """Numba steps through a small block in one call, and through others by single operations."""
    if by_op == "numba":
        monkeypatch.setattr("cobra.models.mamba.ops.numba_ops._SMALL_MATRIX", 0)
    lm, x = small_lm(), torch.randn(20, 6, 32)
    state, whole = zeros(lm, 20), zeros(lm, 20)
    steps = [lm(x[:, t : t + 1], state) for t in range(6)]
    assert_same(torch.cat(steps, 1), lm(x, whole))
    assert_same_state(state, whole)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [3, 5, 100])
def test_pieces_of_ragged_rows_end_where_each_row_ends(by_op, chunk):
    lm, ids = small_lm(), torch.randint(0, 50, (4, 13))
    lengths = torch.tensor([13, 1, 6, 5])
    state, last = zeros(lm, 4), torch.zeros(4, 32)
    for begin in range(0, 13, chunk):
        piece = ids[:, begin : begin + chunk]
        left = (lengths - begin).clamp(0, piece.shape[1])
        hidden = lm(lm.embed(piece), state, left)
        ending = ((lengths > begin) & (lengths <= begin + chunk)).nonzero().squeeze(1)
        last[ending] = hidden[ending, left[ending] - 1]
    for row, length in enumerate(lengths.tolist()):
        alone = zeros(lm, 1)
        assert_same(last[row], lm(lm.embed(ids[row : row + 1, :length]), alone)[0, -1])
        assert_same_state(state.select(torch.tensor([row])), alone)


@torch.no_grad()
def test_20000_tokens_are_read_in_chunks():
    from cobra.models.load import get_llm_backbone_and_tokenizer

    lm = get_llm_backbone_and_tokenizer("mamba-0.5m-zephyr", 512)[0].llm.eval()
    ids = torch.randint(2, 500, (1, 20_000), generator=torch.Generator().manual_seed(0))
    lasts = []
    for chunk in (1024, 4093):
        state = zeros(lm, 1)
        with use_op("numba" if find_spec("numba") else "torch"):
            for piece in ids.split(chunk, 1):
                hidden = lm(lm.embed(piece), state)
        lasts.append((hidden[:, -1], state))
    (last, state), (other_last, other_state) = lasts
    torch.testing.assert_close(last, other_last, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state["ssm"], other_state["ssm"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        (torch.tensor([1, 2, 3]), r"lengths are \(3,\) torch.int64: expected \(2,\)"),
        (torch.tensor([1.0, 2.0]), "expected .2,. of whole numbers"),
        (torch.tensor([1, 9]), "lengths lie between 1 and 9, but rows have 4"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths, words):
    with pytest.raises(UserError, match=words):
        small_lm()(torch.randn(2, 4, 32), lengths=lengths)


@torch.no_grad()
@pytest.mark.parametrize("name", ["torch", "numba"])
def test_golden_answers_and_losses_of_either_implementation(name, monkeypatch, golden, golden_vlm):
    get_ops(name, monkeypatch)
    arrays = golden.npz("llm.npz")
    with use_op(name):
        output = golden_vlm(input_ids=arrays["input_ids"], labels=arrays["labels"])
    torch.testing.assert_close(output.logits, torch.as_tensor(arrays["logits"]), rtol=1e-4, atol=1e-4)
    assert output.loss.item() == pytest.approx(arrays["loss"].item(), rel=1e-5)


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
    with pytest.raises(ValueError, match="mixer 'Mamba2' is unknown"):
        MambaConfig.from_dict({"d_model": 1, "n_layer": 1, "vocab_size": 8, "ssm_cfg": {"layer": "Mamba2"}})
    with pytest.raises(ValueError, match="hidden_size"):
        MambaConfig.from_dict({"width": 3})


def test_transformers_mamba_is_an_oracle(by_op):
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
