"""The arithmetic of a run: rates, batches and steps."""

import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cobra.training.config import Hyperparameters
from cobra.training.schedule import StepPlan, check_batches, check_schedule, learning_rate, plan_steps
from cobra.util.errors import UserError


def values(size: int, per_device: int, epochs: int, max_steps: int | None) -> Hyperparameters:
    return Hyperparameters(epochs, max_steps, size, per_device, 1e-3, 0.1, 1.0, "linear-warmup+cosine-decay", 0.03)


def rates(total, peak=1.0, ratio=0.03):
    return [learning_rate(step, total, peak, ratio) for step in range(total)]


def test_warm_up_is_linear_and_the_rest_a_cosine():
    found = rates(20, 2.0, 0.25)
    assert found[:6] == pytest.approx([0.0, 0.4, 0.8, 1.2, 1.6, 2.0])
    assert found[5:] == pytest.approx([1 + math.cos(math.pi * step / 15) for step in range(15)])
    # Half way down after the warm-up and half of the rest.
    assert learning_rate(20, 32, 2.0, 0.25) == pytest.approx(1.0)


def test_without_warm_up_the_first_step_has_the_peak():
    assert rates(10, 3.0, 0.0)[0] == 3.0
    # A share that is less than a whole step is none.
    assert rates(10, 3.0, 0.09)[0] == 3.0
    assert rates(1, 3.0, 0.03) == [3.0]


@given(total=st.integers(1, 300), ratio=st.floats(0, 1), peak=st.floats(1e-7, 1.0))
def test_rates_rise_to_the_peak_and_fall_without_rising_again(total, ratio, peak):
    found = rates(total, peak, ratio)
    warmup = int(total * ratio)
    assert all(0 <= rate <= peak for rate in found)
    assert found[:warmup] == sorted(found[:warmup])
    assert found[warmup:] == sorted(found[warmup:], reverse=True)
    if warmup:
        assert found[0] == 0
    if warmup < total:
        assert found[warmup] == peak
    # Cobra's rises again after the planned steps; the last step of ours is the lowest but for a warm-up.
    assert learning_rate(total, total, peak, min(ratio, 0.9)) == pytest.approx(0, abs=1e-12)


@given(size=st.integers(1, 400), per_device=st.integers(1, 40), world=st.integers(1, 9))
def test_what_the_error_proposes_works(size, per_device, world):
    if size % (per_device * world) == 0:
        check_batches(size, per_device, world, "finetune")
        return
    with pytest.raises(UserError) as error:
        check_batches(size, per_device, world, "finetune")
    message = str(error.value)
    assert f"a global batch of {size} rows" in message
    assert f"passes of {per_device} rows on {world} processes" in message
    globals_ = re.search(r"--model.finetune_global_batch_size (\d+)(?: or (\d+))?", message).groups()
    assert globals_[0]
    for proposed in filter(None, globals_):
        check_batches(int(proposed), per_device, world, "finetune")
    smaller = re.search(r"--model.finetune_per_device_batch_size (\d+)", message)
    assert bool(smaller) == (size % world == 0)
    if smaller:
        assert int(smaller[1]) < per_device
        check_batches(size, int(smaller[1]), world, "finetune")


@pytest.mark.parametrize(("size", "per_device"), [(0, 4), (4, 0), (-8, 4), (8, -4)])
def test_batch_sizes_must_be_positive(size, per_device):
    with pytest.raises(
        UserError, match=f"--model.align_global_batch_size {size} and .*per_device_batch_size {per_device}"
    ):
        check_batches(size, per_device, 1, "align")


def test_cobras_batch_on_three_gpus_is_refused():
    """Cobra trains at 96 rows then, and says nothing."""
    with pytest.raises(UserError, match="global_batch_size 96 or 144"):
        check_batches(128, 16, 3, "finetune")


@given(
    per_device=st.integers(1, 8),
    world=st.integers(1, 8),
    accumulation=st.integers(1, 8),
    batches=st.integers(1, 50),
    epochs=st.integers(0, 5),
    max_steps=st.none() | st.integers(1, 200),
)
def test_plans_add_up(per_device, world, accumulation, batches, epochs, max_steps):
    assume(epochs or max_steps)
    size = per_device * world * accumulation
    plan = plan_steps(values(size, per_device, epochs, max_steps), world, batches)
    assert plan.accumulation_steps == accumulation
    assert plan.total_steps == (max_steps or epochs * batches)
    # The last epoch holds the last step.
    assert (plan.epochs - 1) * batches < plan.total_steps <= plan.epochs * batches
    if max_steps is None:
        assert plan.epochs == epochs


@pytest.mark.parametrize(("epochs", "max_steps"), [(0, None), (-1, None), (2, 0), (2, -5)])
def test_a_run_without_steps_is_refused(epochs, max_steps):
    with pytest.raises(UserError, match="would take .* steps"):
        plan_steps(values(4, 4, epochs, max_steps), 1, 10)


def test_a_plan_is_a_value():
    assert plan_steps(values(8, 2, 3, None), 2, 5) == StepPlan(8, 2, 2, 5, 15)


def test_an_unknown_schedule_lists_the_known_ones():
    check_schedule("linear-warmup+cosine-decay")
    with pytest.raises(UserError, match="'constant' is unknown.*linear-warmup\\+cosine-decay"):
        check_schedule("constant")
