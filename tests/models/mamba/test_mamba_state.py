"""The inference state as a value: copies, branches, rows, and what does not fit."""

import pytest
import torch

from cobra.models.mamba import MambaConfig, MambaLM, MambaState
from cobra.util.errors import UserError


def small_lm(seed=3, **sizes):
    torch.manual_seed(seed)
    return MambaLM(MambaConfig(**{"d_model": 32, "n_layer": 3, "vocab_size": 50, "d_state": 5} | sizes)).eval()


@pytest.fixture
def lm():
    return small_lm()


@pytest.fixture
@torch.no_grad()
def state(lm):
    """The state of two rows that have read five tokens."""
    found = MambaState.zeros(lm.config, 2, "cpu")
    lm(torch.randn(2, 5, 32), found)
    return found


def assert_equal(one, other):
    assert torch.equal(one["conv"], other["conv"])
    assert torch.equal(one["ssm"], other["ssm"])


@torch.no_grad()
def test_a_copy_stays_while_the_state_goes_on(lm, state):
    kept = state.clone()
    lm(torch.randn(2, 1, 32), state)
    assert not torch.equal(kept["ssm"], state["ssm"])
    assert not torch.equal(kept["conv"], state["conv"])
    assert state.nbytes == 4 * 3 * 2 * 64 * (4 + 5)


@torch.no_grad()
def test_branches_are_gathered_and_go_on_by_themselves(lm, state):
    x = torch.randn(4, 2, 32)
    branches = state.select(torch.tensor([0, 0, 1, 1]))
    assert branches.batch_size == 4
    outs = lm(x, branches)
    for place, row in enumerate((0, 0, 1, 1)):
        alone = state.select(torch.tensor([row]))
        torch.testing.assert_close(outs[place : place + 1], lm(x[place : place + 1], alone), rtol=1e-5, atol=1e-5)
    assert_equal(MambaState.join([state.select(torch.tensor([1])), state]), state.select(torch.tensor([1, 0, 1])))


@pytest.mark.parametrize(
    ("conv", "ssm"),
    [
        ((3,), (3,)),
        ((), ()),
        ((3, 2, 64, 4), (3,)),
        ((3,), (3, 2, 64, 5)),
        ((3, 2, 64, 4), (3, 1, 64, 5)),
        ((3, 2, 64, 4), (2, 2, 64, 5)),
        ((3, 2, 64, 4), (3, 2, 64, 5, 1)),
    ],
)
def test_shapes_that_no_state_has_are_refused(lm, conv, ssm):
    with pytest.raises(UserError, match="the state is of another model: .* but this model has conv .3, ., 64, 4."):
        MambaState({"conv": torch.zeros(conv), "ssm": torch.zeros(ssm)}).check(lm.config, 2)


@torch.no_grad()
def test_going_on_from_a_state_that_does_not_fit_is_refused(lm, state):
    x = torch.randn(2, 1, 32)
    other = small_lm(n_layer=2, d_state=4)
    with pytest.raises(UserError, match="of another model.*this model has conv .2, 2, 64, 4., ssm .2, 2, 64, 4."):
        other(x, state)
    with pytest.raises(UserError, match="the state has 2 rows, but 1 rows of tokens are to be read"):
        lm(x[:1], state)
    with pytest.raises(UserError, match=r"the state is in torch.bfloat16 and torch.float32, but .* torch.float32"):
        lm(x, MambaState({"conv": state["conv"], "ssm": state["ssm"].bfloat16()}))
