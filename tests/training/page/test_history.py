"""Curves of any length are a few hundred points that hide no extreme; logs are read as they grow."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cobra.training.page.history import MOST_POINTS, Curve, GrowingLog, MetricHistory, Point


def curve_of(values, most=MOST_POINTS, first=1):
    curve = Curve(most)
    for step, value in enumerate(values, first):
        curve.add(step, value)
    return curve


def line(step, **values):
    return json.dumps({f"Finetune/{name}": value for name, value in {"Step": step, **values}.items()}) + "\n"


def test_a_short_curve_is_as_it_is():
    assert curve_of([3.0, 1.0, 2.0]).points == [Point(1, 3, 3, 3), Point(2, 1, 1, 1), Point(3, 2, 2, 2)]


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=200), st.integers(2, 20))
def test_a_thinned_curve_keeps_its_ends_its_extremes_and_its_order(values, most):
    points = curve_of(values, most).points
    assert most / 2 - 1 < len(points) <= most or len(points) == len(values)
    assert [point.step for point in points] == sorted(point.step for point in points)
    assert points[-1].step == len(values) and points[-1].last == values[-1]
    assert min(point.low for point in points) == min(values) and max(point.high for point in points) == max(values)
    for point, before in zip(points, [0, *(point.step for point in points)], strict=False):
        steps = values[before : point.step]
        assert (point.low, point.high, point.last) == (min(steps), max(steps), steps[-1])


def test_many_steps_are_a_few_hundred_points():
    curve = curve_of(random.Random(1).random() for _ in range(300_000))
    assert MOST_POINTS / 2 <= len(curve.points) <= MOST_POINTS


def test_values_that_are_not_of_every_step_are_thinned_too():
    curve = Curve(4)
    for step in range(500, 10_001, 500):
        curve.add(step, step)
    assert len(curve.points) <= 4 and curve.points[-1] == Point(10_000, 8500, 10_000, 10_000)


def test_a_log_is_read_as_it_grows(tmp_path):
    path = tmp_path / "run.jsonl"
    log = GrowingLog(path)
    assert list(log.new_lines()) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert list(log.new_lines()) == [{"a": 1}, {"a": 2}]
    with path.open("a") as file:
        file.write(': 3}\n{"a": 4}\n')
    assert list(log.new_lines()) == [{"a": 3}, {"a": 4}]
    assert list(log.new_lines()) == []


@pytest.mark.parametrize("torn", ["[1]\n", "nonsense\n", "null\n"])
def test_nothing_is_read_behind_a_line_that_is_not_whole(tmp_path, torn):
    (tmp_path / "run.jsonl").write_text('{"a": 1}\n' + torn + '{"a": 2}\n')
    assert list(GrowingLog(tmp_path / "run.jsonl").new_lines()) == [{"a": 1}]


def test_metrics_are_curves_by_their_name(tmp_path):
    path = tmp_path / "run.jsonl"
    history = MetricHistory(path)
    assert history.step == 0
    path.write_text(line(1, Loss=3.0) + line(2, Loss=None, Mine=1) + line(3, Loss="x", Step=[]))
    history.read_on()
    assert history.step == 2 and history.newest == {"Step": 2, "Mine": 1}
    assert history.curves["Loss"].points == [Point(1, 3, 3, 3)] and history.curves["Mine"].points[0].step == 2
    with path.open("a") as file:
        # A step that is there already, as an edited file may have it.
        file.write(line(2, Loss=9.0) + line(3, Loss=2.0))
    history.read_on()
    assert [point.last for point in history.curves["Loss"].points] == [3, 2]


def test_numbers_of_any_name_are_bounded(tmp_path):
    (tmp_path / "run.jsonl").write_text(line(1, **{f"m{number}": number for number in range(1000)}))
    history = MetricHistory(tmp_path / "run.jsonl")
    history.read_on()
    assert len(history.curves) == 30
