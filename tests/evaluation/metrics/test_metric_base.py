"""Corpus metrics from sums over images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cobra.evaluation.metrics.base import MeanMetric, RatioMetric, value

COUNTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=8)


def test_a_mean_and_a_ratio_by_hand():
    mean, ratio = MeanMetric([0.25, 0.75, 0.5]), RatioMetric([1, 3, 0], [2, 4, 0])
    assert (value(mean), value(ratio)) == (0.5, 4 / 6)
    assert mean.per_image.tolist() == [0.25, 0.75, 0.5] and ratio.per_image.tolist() == [0.5, 0.75, 0]
    weights = np.array([[2, 0, 1], [0, 0, 3]])
    np.testing.assert_allclose(mean.corpus(weights), [1 / 3, 0.5])
    assert ratio.corpus(weights).tolist() == [0.5, 0]


def test_flags_are_zeros_and_ones():
    flags = MeanMetric([True, False, True, True])
    assert value(flags) == 0.75 and flags.per_image.dtype == np.float64


def test_nothing_counted_is_zero_without_a_warning(recwarn):
    nothing = RatioMetric([0, 0], [0, 0])
    assert value(nothing) == 0 and nothing.per_image.tolist() == [0, 0] and not list(recwarn)


@given(COUNTS)
def test_weights_are_repetitions_of_either_type(rows):
    numerators, denominators, weights = np.array(rows).T
    repeated = [np.repeat(column, weights) for column in (numerators, denominators)]
    expected = repeated[0].sum() / max(1, repeated[1].sum())
    metric = RatioMetric(numerators, denominators)
    assert float(metric.corpus(weights)) == pytest.approx(expected)
    assert float(metric.corpus(weights.astype(np.float64))) == pytest.approx(expected)
    assert metric.corpus(np.stack([weights] * 6).reshape(2, 3, -1)).shape == (2, 3)
