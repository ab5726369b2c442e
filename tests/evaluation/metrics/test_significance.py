"""Intervals and p-values between variants."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_metrics import captioned, make_scorer, recorded
from scipy.stats import kstest, norm, ttest_rel

from cobra.evaluation.data.captioned_image import count_images
from cobra.evaluation.metrics import significance as statistics
from cobra.evaluation.metrics.base import MeanMetric, Metric, RatioMetric, value
from cobra.evaluation.metrics.significance import (
    Comparison,
    Estimate,
    compare_all,
    estimate_all,
    holm,
    small_sample_warning,
)


class Chosen(Metric):
    """A metric whose images each come from one of two others."""

    def __init__(self, first, second, chosen):
        self._metric = first
        self._statistics = np.where(chosen[:, None], first.statistics, second.statistics)

    @property
    def statistics(self):
        return self._statistics

    def from_sums(self, sums):
        return self._metric.from_sums(sums)


@pytest.fixture(scope="module")
def two_people(golden_dir):
    """The metrics of two people's captions of the same images."""
    rows = [image["references"] for image in recorded(golden_dir, "captions.json")["images"]]
    scorer = make_scorer(captioned([own[2:] for own in rows]))
    return [scorer.score([own[person] for own in rows]) for person in (0, 1)]


def pair(first, second):
    return {"first": {"score": MeanMetric(first)}, "second": {"score": MeanMetric(second)}}


def test_identical_predictions_have_p_1_and_no_difference(two_people):
    found = compare_all({"a": two_people[0], "b": dict(two_people[0]), "c": two_people[0]}, replicates=200)
    assert len(found) == 3 * len(two_people[0])
    for comparison in found:
        assert (comparison.p_value, comparison.p_holm) == (1, 1)
        assert comparison.difference == Estimate(0, 0, 0)


def test_p_is_uniform_for_two_systems_of_one_distribution(two_people):
    first, second = two_people
    names = ["bleu_1", "bleu_4", "rouge_l", "cider", "length_ratio"]
    found = {name: [] for name in names}
    for number in range(200):
        # Who of the two people speaks for which system is tossed for each of 100 images.
        rng = np.random.default_rng(number)
        coins = rng.random(len(first["cider"].per_image)) < 0.5
        some = rng.choice(len(coins), 100, replace=False)
        systems = {
            name: {key: Chosen(_rows(first[key], some), _rows(second[key], some), chosen[some]) for key in names}
            for name, chosen in (("a", coins), ("b", ~coins))
        }
        for comparison in compare_all(systems, replicates=400, seed=number):
            found[comparison.metric].append(comparison.p_value)
    for name in names:
        assert kstest(found[name], "uniform").pvalue > 0.001, name
        assert np.mean(np.array(found[name]) < 0.05) < 0.1, name


def _rows(metric, some):
    rest = Chosen(metric, metric, np.ones(len(metric.statistics), dtype=bool))
    rest._statistics = metric.statistics[some]
    return rest


def test_a_planted_shift_is_found_with_the_expected_power():
    n, sigma, trials = 100, 1.0, 200
    # A paired z-test would find this one in 80 % of the trials.
    shift = (norm.ppf(0.975) + norm.ppf(0.8)) * sigma / n**0.5
    found = 0
    for number in range(trials):
        rng = np.random.default_rng(number)
        base = rng.normal(0, 5, n)
        found += _p(base, base + rng.normal(shift, sigma, n), number) < 0.05
    assert 0.8 - 3 * (0.16 / trials) ** 0.5 < found / trials < 0.8 + 3 * (0.16 / trials) ** 0.5


def _p(first, second, seed):
    return compare_all(pair(first, second), replicates=500, seed=seed)[0].p_value


def test_p_agrees_with_the_t_test():
    rng = np.random.default_rng(3)
    first = rng.normal(0, 1, 300)
    second = first + rng.normal(0.08, 0.7, 300)
    assert _p(first, second, 1) == pytest.approx(ttest_rel(first, second).pvalue, abs=0.03)


def test_images_in_common_make_small_differences_visible():
    base = np.random.default_rng(0).normal(0, 10, 200)
    found = compare_all(pair(base, base + 0.1), replicates=500)[0]
    assert found.difference.low == pytest.approx(0.1) and found.difference.high == pytest.approx(0.1)
    assert found.p_value == pytest.approx(1 / 501)


def test_intervals_are_those_of_theory():
    scores = np.random.default_rng(1).normal(0.4, 0.2, 2000)
    found = estimate_all({"a": {"score": MeanMetric(scores)}})["a"]["score"]
    half = 1.96 * scores.std() / 2000**0.5
    assert found.value == pytest.approx(scores.mean())
    assert found.low == pytest.approx(scores.mean() - half, abs=half / 10)
    assert found.high == pytest.approx(scores.mean() + half, abs=half / 10)


def test_intervals_are_those_of_scoring_resampled_images_again(two_people):
    metrics = two_people[0]
    n, replicates = len(metrics["bleu_4"].per_image), 100
    rng = np.random.default_rng([statistics.SEED, 0])
    weights = np.array([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(replicates)])
    scores = metrics["bleu_4"].corpus(weights)
    found = estimate_all({"a": metrics}, replicates=replicates)["a"]["bleu_4"]
    np.testing.assert_allclose([found.low, found.high], np.percentile(scores, [2.5, 97.5]), rtol=1e-9)


def test_chunks_change_nothing(two_people, monkeypatch):
    variants = dict(zip("ab", two_people, strict=True))
    whole = estimate_all(variants, 150), compare_all(variants, 150)
    monkeypatch.setattr(statistics, "_CHUNK", 7 * len(two_people[0]["cider"].per_image))
    again = estimate_all(variants, 150), compare_all(variants, 150)
    for name, estimate in whole[0]["a"].items():
        np.testing.assert_allclose(
            [estimate.low, estimate.high], [again[0]["a"][name].low, again[0]["a"][name].high], rtol=1e-9
        )
    assert [row.p_value for row in whole[1]] == [row.p_value for row in again[1]]


def test_the_same_seed_gives_the_same_numbers_and_another_one_others(two_people):
    variants = dict(zip("ab", two_people, strict=True))
    assert estimate_all(variants, 100) == estimate_all(variants, 100) != estimate_all(variants, 100, seed=8)
    assert compare_all(variants, 100) == compare_all(variants, 100) != compare_all(variants, 100, seed=8)


def test_every_pair_is_compared_in_what_both_have():
    rng = np.random.default_rng(0)
    variants = {name: {"x": MeanMetric(rng.random(9))} for name in "abc"}
    variants["a"]["y"] = RatioMetric(rng.random(9), np.ones(9))
    variants["c"]["y"] = RatioMetric(rng.random(9), np.ones(9))
    variants["b"]["alone"] = MeanMetric(rng.random(9))
    found = compare_all(variants, 50)
    assert [(row.metric, row.first, row.second) for row in found] == [
        ("x", "a", "b"),
        ("x", "a", "c"),
        ("x", "b", "c"),
        ("y", "a", "c"),
    ]
    for row in found:
        expected = value(variants[row.second][row.metric]) - value(variants[row.first][row.metric])
        assert row.difference.value == pytest.approx(expected)
        assert row.p_holm >= row.p_value
    assert [row.p_holm for row in found[:3]] == holm([row.p_value for row in found[:3]])
    assert found[3].p_holm == found[3].p_value


def test_one_image_proves_nothing():
    found = compare_all(pair([0.1], [0.9]), 50)[0]
    assert found.p_value == 1 and not found.is_claimed
    assert found.difference.value == pytest.approx(0.8)


def test_variants_of_different_images_are_not_compared():
    variants = pair([0.1, 0.2], [0.1])
    for function in (estimate_all, compare_all):
        with pytest.raises(ValueError, match=r"same images.*\[1, 2\]"):
            function(variants)
        with pytest.raises(ValueError, match="same images"):
            function(pair([], []))


def test_holm_by_hand():
    # 0.01 x 4, 0.02 x 3, 0.03 x 2 (not below the one before), 0.9.
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.8, 0.7]) == [1, 1]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_never_lowers(p_values):
    adjusted = holm(p_values)
    assert all(p <= corrected <= 1 for p, corrected in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_sentences():
    better = Comparison("bleu_4", "baseline", "finetuned", Estimate(0.012, 0.003, 0.021), 0.002, 0.004, "BLEU-4")
    assert better.sentence(5000) == (
        "finetuned is above baseline in BLEU-4 by 1.2 (95 % interval 0.3 to 2.1, p = 0.004 after Holm)"
    )
    worse = Comparison("cider", "a", "b", Estimate(-0.003, -0.005, -0.001), 0.0005, 0.003, "CIDEr")
    assert worse.sentence(5000) == ("b is below a in CIDEr by 0.30 (95 % interval 0.10 to 0.50, p = 0.003 after Holm)")
    unproved = Comparison("chair_i", "a", "b", Estimate(0.5, 0.1, 0.9), 0.04, 0.06, "CHAIR-i")
    assert unproved.sentence(40) == "no difference in CHAIR-i between a and b can be claimed at n = 40"
    # Nor where the interval says otherwise.
    assert not Comparison("cider", "a", "b", Estimate(0.5, 0, 0.9), 0.04, 0.04).is_claimed
    assert Comparison("cider", "a", "b", Estimate(0.5, 0.1, 0.9), 0.04, 0.04).is_claimed is True
    # As two BLEU-4 that are both printed as 0.0 may have it.
    assert not Comparison("bleu_4", "a", "b", Estimate(1e-5, 1e-6, 2e-5), 0.003, 0.003).is_claimed


def test_small_samples_are_warned_of():
    labels = ["BLEU-4", "CIDEr"]
    assert small_sample_warning(1000, count_images, labels) is None
    assert "BLEU-4 to about +-3.7 and CIDEr to about +-14.0 (x100" in small_sample_warning(100, count_images, labels)
    assert "With 1 image scores" in small_sample_warning(1, count_images, labels)
    assert "a share to about +-9.8 % (95 %)" in small_sample_warning(100, count_images, ["right conclusions"])


def test_all_metrics_have_names(two_people):
    assert all(metric.label for metric in two_people[0].values())
