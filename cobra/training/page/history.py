"""Logs of a run, read as they grow, and their curves, thinned to a few hundred points however long the run is."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cobra.training.metrics import without_stage
from cobra.util.jsonl import read_log

# Points of a curve at most; a curve is drawn a thousand pixels wide.
MOST_POINTS = 400
# Curves at most: a part of one's own may log numbers under any name.
_MOST_CURVES = 30


@dataclass(slots=True)
class Point:
    """Values of one metric over a few steps that follow each other."""

    step: int
    """The last of the steps."""
    low: float
    high: float
    last: float
    """Value of the last step."""

    def add(self, step: int, low: float, high: float, last: float) -> None:
        """Take the values of later steps in; in place."""
        self.step, self.last = step, last
        if low < self.low:
            self.low = low
        if high > self.high:
            self.high = high


class Curve:
    """Values of one metric by step, in at most `most` points, each of equally many steps.

    Which steps share a point depends on the last step alone: a run that resumes has the same points.
    """

    def __init__(self, most: int = MOST_POINTS) -> None:
        self._most, self._width = most, 1
        self._points: dict[int, Point] = {}

    def add(self, step: int, value: float) -> None:
        """Add the value of a step; steps go up, from 1."""
        self._put((step - 1) // self._width, step, value, value, value)
        while len(self._points) > self._most:
            self._width *= 2
            points, self._points = self._points, {}
            for place, point in points.items():
                self._put(place // 2, point.step, point.low, point.high, point.last)

    def _put(self, place: int, step: int, low: float, high: float, last: float) -> None:
        point = self._points.get(place)
        if point is None:
            self._points[place] = Point(step, low, high, last)
        else:
            point.add(step, low, high, last)

    @property
    def points(self) -> list[Point]:
        """The points, from the first step on."""
        return list(self._points.values())


class GrowingLog:
    """A log of JSON lines that is read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._end = path, 0

    def new_lines(self) -> Iterator[dict[str, Any]]:
        """Yield the whole lines since the last call; those after a torn one, and of an absent file, are none."""
        if not self._path.is_file():
            return
        for end, line in read_log(self._path, self._end):
            if not isinstance(line, dict):
                return
            self._end = end
            yield line


class MetricHistory:
    """Curves of all metrics of a run, out of its `{run_id}.jsonl`.

    Attributes:
        curves: Curves by the metric's name, without the stage in front.
        newest: Metrics of the last step.
    """

    def __init__(self, path: Path) -> None:
        """Read nothing yet; `path` is the log."""
        self._log = GrowingLog(path)
        self.curves: dict[str, Curve] = {}
        self.newest: dict[str, float] = {}

    @property
    def step(self) -> int:
        """The last step that was logged; 0 before the first."""
        return int(self.newest.get("Step", 0))

    def read_on(self) -> None:
        """Read the lines that are new; what is no finite number is in no curve."""
        for line in self._log.new_lines():
            values = {without_stage(name): value for name, value in line.items() if type(value) in (int, float)}
            step = values.get("Step")
            if type(step) is not int or step <= self.step:
                continue
            self.newest = values
            for name, value in values.items():
                if name in self.curves or len(self.curves) < _MOST_CURVES:
                    self.curves.setdefault(name, Curve()).add(step, value)
