"""Axes hold what is shown and have round ticks; curves lie inside their view box."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cobra.evaluation.report.charts import strip
from cobra.util.charts import axis, dots, path

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9)


@given(NUMBERS)
def test_axes_hold_their_values_and_have_round_ticks(values):
    found = axis([*values, math.nan], least_span=1.0)
    places = [found.position(value) for value in values]
    assert all(0 <= place <= 100 for place in places)
    assert [place for _, place in sorted(zip(values, places, strict=True))] == sorted(places)
    assert 1 <= len(found.ticks) <= 6
    for tick in found.ticks:
        assert tick.place == pytest.approx(found.position(float(tick.label)), abs=0.02)
    assert strip(found, values[0], math.nan, values[0]) is None


@given(NUMBERS)
def test_axes_without_a_least_span_hold_their_values_too(values):
    found = axis(values)
    assert found.low < min(values) + 1e-9 and found.high > max(values) - 1e-9 and len(found.ticks) <= 6


def test_differences_of_rounding_are_not_stretched_over_an_axis():
    found = axis([0.0, 1e-4], least_span=1.0)
    assert found.position(1e-4) - found.position(0) < 0.02 and all(len(tick.label) <= 4 for tick in found.ticks)


def test_zero_is_never_negative_on_an_axis():
    assert [tick.label for tick in axis([-1, 1]).ticks] == ["-1.0", "-0.5", "0.0", "0.5", "1.0"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 2e-5], ["0", "5e-6", "1e-5", "1.5e-5", "2e-5"]),
        ([0, 5000], ["0", "2000", "4000"]),
        ([], ["0.0"]),
        ([math.nan], ["0.0"]),
    ],
)
def test_labels_are_short(values, labels):
    assert [tick.label for tick in axis(values).ticks if tick.label in labels] == labels


def test_steps_are_counted_in_whole_numbers():
    found = axis([1, 3], least_step=1, margin=0)
    assert (found.low, found.high) == (1, 3) and [tick.label for tick in found.ticks] == ["1", "2", "3"]


def test_curves_are_paths_in_percent():
    across, up = axis([0, 10], margin=0), axis([0, 4], margin=0)
    assert path([(0, 0), (5, 4), (10, 1)], across, up) == "M0,100L50,0L100,75"
    assert dots([(0, 0), (5, 4)], across, up) == "M0,100h0M50,0h0"


@given(NUMBERS)
def test_curves_stay_in_their_view_box(values):
    numbers = re.findall(r"[-\d.e]+", path(enumerate(values), axis(range(len(values))), axis(values)))
    assert len(numbers) == 2 * len(values) and all(0 <= float(number) <= 100 for number in numbers)
