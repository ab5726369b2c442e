"""Effects of arms: planted worlds with noise of questions and of seeds, and the edges of the formula."""

import numpy as np
import pytest
from scipy.stats import norm

from cobra.study.effects import measure_effect, measure_kinds

# Sizes of `make study`: questions, and seeds of each arm.
QUESTIONS, SEEDS = 1050, 3
# Standard deviations in log odds: of questions, of how a question suits an arm, and of a seed's model (1.7 points).
OF_QUESTIONS, OF_SUITS, OF_SEEDS = 1.5, 0.5, 0.1


def shift(effect):
    """Log odds that raise a mean of a half by an effect, over all noise."""
    spread = (OF_QUESTIONS**2 + OF_SUITS**2 + OF_SEEDS**2) ** 0.5
    points = np.linspace(-5, 5, 2001)
    weights = norm.pdf(points) / norm.pdf(points).sum()
    steps = np.linspace(0, 2, 2001)
    means = (weights / (1 + np.exp(-(steps[:, None] + spread * points)))).sum(axis=1)
    return steps[np.searchsorted(means, 0.5 + effect)]


def world(rng, effect, seeds=SEEDS, arms=2):
    """Arms (seeds, questions) of 0 and 1; the last one is better by the effect."""
    hardness = rng.normal(0, OF_QUESTIONS, QUESTIONS)
    scores = []
    for arm in range(arms):
        suits = hardness + rng.normal(0, OF_SUITS, QUESTIONS) + effect * (arm == arms - 1)
        models = suits + rng.normal(0, OF_SEEDS, seeds)[:, None]
        scores.append((rng.random((seeds, QUESTIONS)) < 1 / (1 + np.exp(-models))).astype(float))
    return scores


@pytest.mark.parametrize("sign", [1, -1])
def test_an_effect_of_ten_points_is_claimed_with_its_sign(sign):
    rng, by = np.random.default_rng(5), shift(0.1)
    effects = [measure_effect(*world(rng, by)[::sign]) for _ in range(200)]
    assert sum(effect.is_claimed and effect.difference * sign > 0 for effect in effects) >= 190
    assert sum(effect.low <= sign * 0.1 <= effect.high for effect in effects) >= 190


def test_no_effect_is_claimed_where_there_is_none():
    rng = np.random.default_rng(6)
    assert sum(measure_effect(*world(rng, 0)).is_claimed for _ in range(200)) <= 10


def test_one_arm_trained_twice_with_other_seeds_makes_no_effect():
    """Six models of one arm, dealt into two: what differs is the seeds alone."""
    rng = np.random.default_rng(7)
    arms = (world(rng, 0, seeds=6, arms=1)[0] for _ in range(200))
    assert sum(measure_effect(arm[:3], arm[3:]).is_claimed for arm in arms) <= 10


def test_a_test_of_questions_alone_would_call_lucky_seeds_effects():
    """Without the spread of seeds many more than 5 % of these worlds show an effect: the noise is real."""
    rng = np.random.default_rng(8)
    effects = [measure_effect(*world(rng, 0, seeds=2)) for _ in range(200)]
    assert sum(abs(effect.difference) > 1.96 * effect.question_error for effect in effects) > 20


def test_the_smallest_effect_is_claimed_with_its_power():
    rng = np.random.default_rng(9)
    size = float(np.mean([measure_effect(*world(rng, 0)).smallest for _ in range(50)]))
    by = shift(size)
    share = np.mean([measure_effect(*world(rng, by)).is_claimed for _ in range(200)])
    assert 0.7 <= share <= 0.97


def test_a_single_seed_claims_nothing():
    rng = np.random.default_rng(1)
    first, second = world(rng, shift(0.3))
    effect = measure_effect(first[:1], second)
    assert effect.difference > 0.2 and np.isnan(effect.p_value) and not effect.is_claimed


def test_the_checkpoint_that_all_start_from_has_no_seed():
    rng = np.random.default_rng(2)
    first, second = world(rng, shift(0.2))
    assert measure_effect(first[:1], second, are_fixed=(True, False)).is_claimed


def test_equal_arms_and_constant_differences():
    same = np.ones((3, 10))
    assert (measure_effect(same, same).p_value, measure_effect(same, same).is_claimed) == (1, False)
    assert measure_effect(0 * same, same).p_value == 2**-9 and measure_effect(0 * same, same).difference == 1


@pytest.mark.parametrize("step", [0, 1, 0.2])
def test_questions_that_all_differ_alike_give_no_interval_and_no_smallest_effect(step):
    """No spread is not certainty, and rounding of the means makes no spread."""
    first = np.full((3, 50), 0.1)
    effect = measure_effect(first, first + step)
    assert effect.difference == pytest.approx(step) and effect.n == 50
    assert np.isnan([effect.low, effect.high, effect.smallest]).all()
    assert effect.p_value == (1 if step == 0 else 2.0**-49)


@pytest.mark.parametrize("shape", [(3, 4), (3, 1), (3,)])
def test_other_questions_cannot_be_compared(shape):
    with pytest.raises(ValueError, match="same two or more questions"):
        measure_effect(np.ones((3, 5) if shape != (3, 1) else shape), np.ones(shape))


def test_kinds_are_corrected_for_their_number():
    rng = np.random.default_rng(3)
    first, second = world(rng, shift(0.1))
    kinds = ["a", "b", "c"] * (QUESTIONS // 3)
    effects = measure_kinds(first, second, kinds)
    assert list(effects) == ["a", "b", "c"]
    alone = {kind: measure_effect(first[:, index::3], second[:, index::3]) for index, kind in enumerate("abc")}
    for kind, effect in effects.items():
        assert effect.difference == alone[kind].difference and effect.p_holm >= alone[kind].p_value == effect.p_value
    least = min(alone.values(), key=lambda effect: effect.p_value)
    assert min(effect.p_holm for effect in effects.values()) == pytest.approx(min(1, 3 * least.p_value))


def test_two_questions_that_all_seeds_agree_on_claim_nothing():
    assert not measure_effect(np.zeros((1, 2)), np.ones((3, 2)), are_fixed=(True, False)).is_claimed
