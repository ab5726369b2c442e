"""Charts of a run's metrics: which numbers share one, and their curves as paths of an SVG."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cobra.training.page.history import Curve, Point
from cobra.util.charts import Axis, axis, dots, path

# Significant digits of the values that the page's script shows.
_DIGITS = 5


class Plan(NamedTuple):
    """A chart and what is drawn on it."""

    title: str
    curves: tuple[tuple[str, str, str], ...]
    """(metric, words, form) of each curve; a form is `raw`, `line` or `dots`."""
    form: str = "{:.4g}"
    """Form of its values."""
    from_zero: bool = False


_PLANS = (
    Plan(
        "Loss",
        (
            ("Loss (Raw)", "each step", "raw"),
            ("Loss", "mean of 128 steps", "line"),
            ("Validation Loss", "held-out rows", "dots"),
        ),
        "{:.4f}",
    ),
    Plan("Learning rate", (("Learning Rate", "each step", "line"),), "{:.2e}", True),
    Plan("Gradient norm", (("Gradient Norm", "each step", "raw"),), "{:.3g}", True),
    Plan("Tokens a second", (("Tokens/s", "labelled tokens", "line"),), "{:,.0f}", True),
    Plan("Samples a second", (("Samples/s", "rows", "line"),), "{:,.1f}", True),
    Plan("Memory in GB", (("Memory (GB)", "peak", "line"),), "{:.1f}", True),
    Plan("Model FLOPS utilisation", (("MFU", "share of the GPUs' peak", "line"),), "{:.1%}", True),
)
# Shown in words, or of no use as a curve.
_ELSEWHERE = {"Step", "Step Time", "Tokens", "Skipped", "Valid Stages", "Conclusion Match"}


class Drawn(NamedTuple):
    """A curve on a chart."""

    label: str
    form: str
    path: str
    newest: str
    """Its newest value, as it is shown."""


@dataclass(frozen=True)
class Chart:
    """A chart, as the page's template draws it."""

    title: str
    summary: str
    """Text for those who do not see it."""
    across: Axis
    up: Axis
    curves: list[Drawn]
    data: dict[str, Any]
    """For the script: `form`, and `steps`, shown `values` and `places` across of each curve."""


def draw_charts(curves: Mapping[str, Curve]) -> list[Chart]:
    """Return the charts of all metrics, those of one's own last; what was never logged has none."""
    known = {metric for plan in _PLANS for metric, _, _ in plan.curves} | _ELSEWHERE
    own = tuple(Plan(name, ((name, "", "line"),)) for name in curves if name not in known)
    steps = [point.step for curve in curves.values() for point in (curve.points[0], curve.points[-1])]
    across = axis(steps, least_step=1, margin=0)
    return [
        _draw(plan, curves, across) for plan in (*_PLANS, *own) if any(name in curves for name, _, _ in plan.curves)
    ]


def _draw(plan: Plan, curves: Mapping[str, Curve], across: Axis) -> Chart:
    there = [(words, form, curves[metric].points) for metric, words, form in plan.curves if metric in curves]
    values = [value for _, _, points in there for point in points for value in (point.low, point.high)]
    up = axis([*values, 0.0] if plan.from_zero else values)
    shown = plan.form.format
    drawn = [
        Drawn(words, form, _path(form, points, across, up), shown(points[-1].last)) for words, form, points in there
    ]
    parts = [
        f"{words or plan.title} from {shown(points[0].last)} at step {points[0].step:,} to {shown(points[-1].last)} at "
        f"step {points[-1].step:,}"
        for words, _, points in there
    ]
    summary = f"{plan.title}: {'; '.join(parts)}; lowest {shown(min(values))}, highest {shown(max(values))}"
    return Chart(
        plan.title, summary, across, up, drawn, {"curves": [_data(points, across, plan) for *_, points in there]}
    )


def _path(form: str, points: Sequence[Point], across: Axis, up: Axis) -> str:
    if form == "raw":
        return path(_zigzag(points), across, up)
    return (dots if form == "dots" else path)([(point.step, point.last) for point in points], across, up)


def _zigzag(points: Sequence[Point]) -> Iterator[tuple[float, float]]:
    """Yield lowest and highest values of steps that share a point, so that no outlier is thinned away."""
    for point in points:
        yield point.step, point.low
        if point.high > point.low:
            yield point.step, point.high
            yield point.step, point.last


def _data(points: Sequence[Point], across: Axis, plan: Plan) -> dict[str, Any]:
    return {
        "steps": [point.step for point in points],
        "places": [across.position(point.step) for point in points],
        "values": [plan.form.format(point.last) for point in points],
    }


def sparkline(curve: Curve, across: Axis) -> str:
    """Return the path of a share between 0 and 1, on a chart without numbers."""
    return path([(point.step, point.last) for point in curve.points], across, Axis(0, 1, ()))
