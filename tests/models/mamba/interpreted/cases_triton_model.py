"""Models that train and answer through the Triton kernels, which Triton interprets; see `cases_triton_ops.py`."""

import torch
import torch.nn.functional as F

from cobra.models.mamba import MambaConfig, MambaLM, MambaState
from cobra.models.mamba.ops import torch_ops, triton_ops, use_op
from cobra.models.mamba.ops.probe import probe

# Two rows of which the second one is padded.
LENGTHS, STEPS, VOCABULARY = (18, 9), 18, 32


def make_model():
    torch.manual_seed(0)
    return MambaLM(MambaConfig(d_model=16, n_layer=2, vocab_size=VOCABULARY, d_state=8))


def train(ops):
    """Return the losses of three steps, the last gradients and the weights after them."""
    model = make_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(VOCABULARY, (2, STEPS), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor(LENGTHS)
    labels = ids.masked_fill(torch.arange(STEPS) >= lengths[:, None], -100)
    losses = []
    for _ in range(3):
        with use_op(ops):
            scores = model.lm_head(model(model.embed(ids), lengths=lengths))
            loss = F.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    values = {f"loss {step}": loss for step, loss in enumerate(losses)}
    values |= {f"gradient of {name}": weight.grad for name, weight in model.named_parameters()}
    return values | {name: weight.detach() for name, weight in model.named_parameters()}


def test_three_steps_of_training_are_those_of_pytorch():
    actual, expected = train(triton_ops), train(torch_ops)
    for name, value in expected.items():
        assert (actual[name] - value).abs().max() <= 1e-5 * max(1.0, value.abs().max()), name


@torch.no_grad()
def test_a_text_is_read_and_gone_on_with_as_by_pytorch():
    model = make_model().eval()
    ids = torch.randint(VOCABULARY, (2, STEPS + 3), generator=torch.Generator().manual_seed(1))
    results = []
    for ops in (triton_ops, torch_ops):
        state = MambaState.zeros(model.config, 2, "cpu")
        with use_op(ops):
            read = model(model.embed(ids[:, :STEPS]), state, lengths=torch.tensor(LENGTHS))
            read = read.masked_fill(torch.arange(STEPS)[:, None] >= torch.tensor(LENGTHS)[:, None, None], 0.0)
            steps = [model(model.embed(ids[:, [step]]), state) for step in range(STEPS, STEPS + 3)]
        results.append([read, *steps, *state.parts.values()])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_the_probe_finds_them_right(monkeypatch):
    # The interpreter cuts numbers off where it makes them bf16, and a GPU rounds.
    monkeypatch.setattr("cobra.models.mamba.ops.probe._TOLERANCE", 4e-2)
    assert probe(triton_ops, torch.device("cpu")) is None
