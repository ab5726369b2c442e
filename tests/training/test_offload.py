"""AdamW in main memory: the numbers of torch's, and states that go on in either."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_step import CPU, ROWS, collate, make_strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from cobra.training.offload import OffloadedAdamW
from cobra.training.run_state import RunSaver, RunState, states
from cobra.util.errors import UserError


def parameters(seed=0, dtype=torch.float32, sizes=((5, 7), (3,), (33, 2))):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in sizes]


def groups(held):
    return [{"params": held[:1], "weight_decay": 0.3}, {"params": held[1:], "weight_decay": 0.0}]


def gradients(held, step, absent=()):
    generator = torch.Generator().manual_seed(step)
    for index, parameter in enumerate(held):
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if index in absent:
            parameter.grad = None


def advance(held, optimizer, steps, absent=()):
    for step in steps:
        gradients(held, step, absent)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def both(seed=0):
    """The same parameters, with torch's optimizer and with ours."""
    one, other = parameters(seed), parameters(seed)
    return one, torch.optim.AdamW(groups(one), lr=1.0, fused=True), other, OffloadedAdamW(groups(other), lr=1.0)


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(1, 6), absent=st.sets(st.integers(0, 2), max_size=2), seed=st.integers(0, 3))
def test_the_numbers_are_torchs_bit_by_bit(steps, absent, seed):
    one, theirs, other, ours = both(seed)
    start = [parameter.detach().clone() for parameter in one]
    for held, optimizer in ((one, theirs), (other, ours)):
        advance(held, optimizer, range(steps), absent)
    assert_equal(other, one)
    for index, (parameter, before) in enumerate(zip(other, start, strict=True)):
        assert torch.equal(parameter, before) == (index in absent)
        assert parameter.grad is None


def test_a_strategy_trains_the_same():
    whole, offloaded = make_strategy(weight_decay=0.1), make_strategy(weight_decay=0.1)
    offloaded.optimizer = OffloadedAdamW(offloaded.optimizer.param_groups, lr=1e-2)
    for _ in range(3):
        assert offloaded.train_step([collate(*ROWS)], 1e-3) == whole.train_step([collate(*ROWS)], 1e-3)
    assert_equal(offloaded.vlm.parameters(), whole.vlm.parameters())


@pytest.mark.parametrize("ours_first", [False, True])
def test_a_state_goes_on_with_and_without_offloading(ours_first):
    one, theirs, other, ours = both()
    expected, optimizer = parameters(), None
    optimizer = torch.optim.AdamW(groups(expected), lr=1.0, fused=True)
    advance(expected, optimizer, range(6))
    first, before, second, after = (other, ours, one, theirs) if ours_first else (one, theirs, other, ours)
    advance(first, before, range(3))
    # torch's takes the tensors themselves.
    after.load_state_dict(before.state_dict() if not ours_first else deepcopy(before.state_dict()))
    with torch.no_grad():
        for parameter, value in zip(second, first, strict=True):
            parameter.copy_(value)
    # The state was copied: the one before goes its own way.
    advance(first, before, range(10, 12))
    advance(second, after, range(3, 6))
    assert_equal(second, expected)


def test_states_are_fp32_and_on_the_cpu():
    held = parameters(dtype=torch.bfloat16)
    optimizer = OffloadedAdamW(groups(held), lr=1.0)
    advance(held, optimizer, range(2))
    restored = OffloadedAdamW(groups(held), lr=1.0)
    restored.load_state_dict(optimizer.state_dict())
    for parameter in held:
        for name in ("exp_avg", "exp_avg_sq", "master"):
            value = restored.state[parameter][name]
            assert (value.dtype, value.device.type, value.shape) == (torch.float32, "cpu", parameter.shape)
            assert torch.equal(value, optimizer.state[parameter][name])
            assert value.data_ptr() != optimizer.state[parameter][name].data_ptr()


def test_steps_too_small_for_half_precision_are_not_lost():
    (held,) = parameters(dtype=torch.bfloat16, sizes=((4, 4),))
    optimizer = OffloadedAdamW([held], lr=1.0)
    reference = nn.Parameter(held.detach().float())
    wide = torch.optim.AdamW([reference], lr=1.0, weight_decay=0.0, fused=True)
    plain = nn.Parameter(held.detach().clone())
    narrow = torch.optim.AdamW([plain], lr=1.0, weight_decay=0.0)
    before = held.detach().clone()
    for step in range(60):
        for parameter, chosen in ((held, optimizer), (reference, wide), (plain, narrow)):
            parameter.grad = torch.ones_like(parameter)
            chosen.param_groups[0]["lr"] = 2e-4 * (step % 2 + 1)
            chosen.step()
    assert torch.equal(optimizer.state[held]["master"], reference)
    assert torch.equal(held, reference.bfloat16())
    assert not torch.equal(held, before)
    # What happens without them.
    assert (plain == before).float().mean() > 0.5


def test_a_state_without_master_weights_goes_on_in_half_precision():
    wide = parameters()
    theirs = torch.optim.AdamW(groups(wide), lr=1.0, fused=True)
    advance(wide, theirs, range(2))
    held = [nn.Parameter(parameter.detach().bfloat16()) for parameter in wide]
    ours = OffloadedAdamW(groups(held), lr=1.0)
    ours.load_state_dict(theirs.state_dict())
    advance(held, ours, range(2, 4))
    for parameter in held:
        state = ours.state[parameter]
        assert state["step"] == 4
        assert torch.equal(state["master"].bfloat16(), parameter)


@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_a_run_goes_on_with_and_without_offloading(tmp_path, before, after):
    def strategy(offloaded):
        made = make_strategy()
        if offloaded:
            made.optimizer = OffloadedAdamW(made.optimizer.param_groups, lr=1e-2)
        return made

    first = strategy(before)
    first.train_step([collate(*ROWS)], 1e-2)
    saver = RunSaver(tmp_path, CPU, first.vlm, first.optimizer)
    saver.begin(RunState(1, 0, 0))
    expected = [first.train_step([collate(*ROWS)], 1e-2) for _ in range(2)]
    assert saver.finish() is None
    (path,) = states(tmp_path / "resume")
    second = strategy(after)
    RunSaver(tmp_path, CPU, second.vlm, second.optimizer).restore(path)
    assert [second.train_step([collate(*ROWS)], 1e-2) for _ in range(2)] == expected
    assert_equal(second.vlm.parameters(), first.vlm.parameters())


def test_a_closure_is_called_with_gradients():
    (held,) = parameters(sizes=((3,),))
    optimizer = OffloadedAdamW([held], lr=0.1)

    def closure():
        loss = (held**2).sum()
        loss.backward()
        return loss.item()

    before = held.detach().clone()
    assert optimizer.step(closure) == pytest.approx((before**2).sum().item())
    assert not torch.equal(held, before)


def test_another_number_of_parameters_is_refused():
    held = parameters()
    with pytest.raises(ValueError, match="size of optimizer's group"):
        OffloadedAdamW(held[:2], lr=1.0).load_state_dict(OffloadedAdamW(held, lr=1.0).state_dict())


def test_sharded_parameters_are_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = DeviceMesh("cpu", [0])
        sharded = nn.Parameter(DTensor.from_local(torch.zeros(2), mesh, [Replicate()]))
        with pytest.raises(UserError, match="--offload_optimizer is for a single process"):
            OffloadedAdamW([sharded], lr=1.0)
    finally:
        torch.distributed.destroy_process_group()
