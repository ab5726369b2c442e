"""The inference state as a value: copies, branches, rows, files, and what does not fit."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cobra.models.mamba import MambaConfig, MambaLM, MambaState
from cobra.models.mamba.state_file import fingerprint, load_state, save_state
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
    assert torch.equal(one.conv, other.conv)
    assert torch.equal(one.ssm, other.ssm)


@torch.no_grad()
def test_a_copy_stays_while_the_state_goes_on(lm, state):
    kept = state.clone()
    lm(torch.randn(2, 1, 32), state)
    assert not torch.equal(kept.ssm, state.ssm)
    assert not torch.equal(kept.conv, state.conv)
    assert state.nbytes == 4 * 3 * 2 * 64 * (4 + 5)


@torch.no_grad()
def test_branches_are_gathered_and_go_on_by_themselves(lm, state):
    x = torch.randn(4, 2, 32)
    branches = state.repeat(2)
    assert branches.batch_size == 4
    assert_equal(branches, state.select(torch.tensor([0, 0, 1, 1])))
    outs = lm(x, branches)
    for place, row in enumerate((0, 0, 1, 1)):
        alone = state.select(torch.tensor([row]))
        torch.testing.assert_close(outs[place : place + 1], lm(x[place : place + 1], alone), rtol=1e-5, atol=1e-5)
    assert_equal(MambaState.join([state.select(torch.tensor([1])), state]), state.select(torch.tensor([1, 0, 1])))


def test_what_is_written_is_read_back(lm, state, tmp_path):
    path = tmp_path / "new" / "read.safetensors"
    save_state(path, state, lm)
    assert_equal(load_state(path, lm), state)
    assert_equal(load_state(path, lm, batch=2), state)
    assert [file.name for file in path.parent.iterdir()] == ["read.safetensors"]
    # Part of a larger state, as branches are.
    save_state(path, MambaState(state.conv[:, 1:], state.ssm[:, 1:]), lm)
    assert_equal(load_state(path, lm), state.select(torch.tensor([1])))


@torch.no_grad()
def test_a_read_state_goes_on_like_the_one_that_was_written(lm, state, tmp_path):
    save_state(tmp_path / "a", state, lm)
    x = torch.randn(2, 3, 32)
    assert torch.equal(lm(x, load_state(tmp_path / "a", lm)), lm(x, state))


def test_a_write_that_fails_leaves_what_was_there(lm, state, tmp_path, monkeypatch):
    path = tmp_path / "a"
    save_state(path, state, lm)
    before = path.read_bytes()

    def fail(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("cobra.models.mamba.state_file.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        save_state(path, state.clone(), lm)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def changed_lm():
    found = small_lm()
    with torch.no_grad():
        found.backbone.layers[1].mixer.in_proj.weight *= 1.001
    return found


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: small_lm(n_layer=2), "a state of another model: it has n_layer=3, and this one has n_layer=2"),
        (lambda: small_lm(d_state=4, expand=1), "it has d_state=5 expand=2, and this one has d_state=4 expand=1"),
        (lambda: small_lm(seed=4), r"a state of other weights \(\w{16}\) than this model's \(\w{16}\)"),
        (changed_lm, "a state of other weights"),
        (lambda: small_lm().bfloat16(), "a state of the model in float32, and this one is in bfloat16"),
    ],
)
def test_a_state_of_another_model_is_refused(lm, state, other, words, tmp_path):
    save_state(tmp_path / "a", state, lm)
    with pytest.raises(UserError, match=words):
        load_state(tmp_path / "a", other())


def test_a_state_of_other_rows_is_refused(lm, state, tmp_path):
    save_state(tmp_path / "a", state, lm)
    with pytest.raises(UserError, match="the state has 2 rows, but 3 rows of tokens are to be read"):
        load_state(tmp_path / "a", lm, batch=3)


def test_files_that_hold_no_state_are_refused(lm, state, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_state(tmp_path / "a", lm)
    (tmp_path / "a").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="cannot be read as a Mamba state"):
        load_state(tmp_path / "a", lm)
    save_state(tmp_path / "a", state, lm)
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[:-1])
    with pytest.raises(UserError, match="cannot be read as a Mamba state"):
        load_state(tmp_path / "a", lm)
    (tmp_path / "a").write_bytes(whole)
    save_file(load_file(tmp_path / "a"), tmp_path / "b")
    with pytest.raises(UserError, match="is not a Mamba state: it holds conv, ssm"):
        load_state(tmp_path / "b", lm)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["conv", "ssm"])
def test_a_state_with_numbers_that_are_not_finite_is_refused(lm, state, part, value, tmp_path):
    broken = state.clone()
    getattr(broken, part)[-1, 0, 0, 0] = value
    save_state(tmp_path / "a", broken, lm)
    with pytest.raises(UserError, match="numbers that are not finite"):
        load_state(tmp_path / "a", lm)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": "no JSON"}, "of another model: it has d_conv=None .* and this one has d_conv=4 "),
        ({"config": "[" * 100_000}, "of another model: it has d_conv=None "),
        ({"config": "[1]"}, "of another model: it has d_conv=None "),
        ({"config": '{"d_conv": "\\u001b[2J"}'}, r"of another model: it has d_conv=\\u001b\[2J "),
        ({"dtype": "\x1b[2J"}, r"a state of the model in \\u001b\[2J, and"),
        ({"weights": "a" * 1000}, r"a state of other weights \(a{40}\.\.\.\) than"),
    ],
)
def test_a_file_of_somebody_elses_may_tell_anything_of_its_model(lm, state, change, words, tmp_path):
    save_state(tmp_path / "a", state, lm)
    with safe_open(tmp_path / "a", "pt") as file:
        metadata = file.metadata()
    save_file(load_file(tmp_path / "a"), tmp_path / "b", metadata | change)
    with pytest.raises(UserError, match=words):
        load_state(tmp_path / "b", lm)


def test_sizes_are_compared_whatever_way_they_are_written(lm, state, tmp_path):
    save_state(tmp_path / "a", state, lm)
    with safe_open(tmp_path / "a", "pt") as file:
        metadata = file.metadata()
    sizes = json.dumps(json.loads(metadata["config"]), indent=1)
    save_file(load_file(tmp_path / "a"), tmp_path / "b", metadata | {"config": sizes})
    assert_equal(load_state(tmp_path / "b", lm), state)


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
def test_shapes_that_no_state_has_are_refused(lm, state, conv, ssm, tmp_path):
    save_state(tmp_path / "a", state, lm)
    with safe_open(tmp_path / "a", "pt") as file:
        save_file({"conv": torch.zeros(conv), "ssm": torch.zeros(ssm)}, tmp_path / "b", file.metadata())
    with pytest.raises(UserError, match="the state is of another model: .* but this model has 3 layers of width 64"):
        load_state(tmp_path / "b", lm)
    with pytest.raises(UserError, match="the state is of another model: .* but this model has 3 layers of width 64"):
        save_state(tmp_path / "c", MambaState(torch.zeros(conv), torch.zeros(ssm)), lm)


@torch.no_grad()
def test_going_on_from_a_state_that_does_not_fit_is_refused(lm, state):
    x = torch.randn(2, 1, 32)
    other = small_lm(n_layer=2, d_state=4)
    with pytest.raises(UserError, match="of another model.*this model has 2 layers of width 64, 4 taps and 4 states"):
        other(x, state)
    with pytest.raises(UserError, match="the state has 2 rows, but 1 rows of tokens are to be read"):
        lm(x[:1], state)
    with pytest.raises(UserError, match=r"the state is in torch.float32 and torch.bfloat16, but .* torch.float32"):
        lm(x, MambaState(state.conv, state.ssm.bfloat16()))
    with pytest.raises(UserError, match="of another model"):
        save_state("unused", state, other)


def test_a_fingerprint_is_of_the_weights_alone(lm):
    assert fingerprint(lm) == fingerprint(small_lm())
    assert fingerprint(lm) != fingerprint(changed_lm())
