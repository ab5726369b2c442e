"""Figure of a study, in SVG: every effect with its interval, and below it those by kind of question."""

import math
from collections.abc import Iterator, Sequence
from html import escape

from cobra.study.effects import Effect
from cobra.study.verdict import Comparison
from cobra.util.charts import Axis, axis
from cobra.util.printable import printable

# In units of the figure, which pages scale.
_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 760, 250, 30, 22, 12
_STYLE = "font-family='system-ui, sans-serif' font-size='13' fill='#1f2430'"
# Characters of a label that have room left of the axis.
_LONGEST = 32
_CLAIMED, _OPEN, _GRID = "#2b63b0", "#8a93a3", "#d5d9e0"


def draw_effects(comparisons: Sequence[Comparison]) -> str:
    """Return a figure of the effects on the first comparison's measure, in points; claimed ones are filled dots."""
    measure = comparisons[0].measure
    rows = list(_rows([comparison for comparison in comparisons if comparison.measure == measure]))
    points = [100 * number for _, effect, _ in rows for number in (effect.low, effect.high, effect.difference)]
    on, bottom = axis([*points, 0.0]), _TOP + _ROW * len(rows)
    title = f"Points of {measure} with 95 % intervals; filled where an effect is claimed"
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {bottom + 2 * _ROW}' role='img'>",
        f"<title>{escape(title)}</title>",
        f"<rect width='{_WIDTH}' height='{bottom + 2 * _ROW}' rx='6' fill='#ffffff'/>",
        *_grid(on, bottom),
        *(line for place, row in enumerate(rows) for line in _mark(on, _TOP + _ROW * (place + 0.5), *row)),
        f"<text x='12' y='{bottom + 1.75 * _ROW}' {_STYLE} fill-opacity='0.7'>{escape(title)}</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _rows(comparisons: Sequence[Comparison]) -> Iterator[tuple[str, Effect, bool]]:
    for comparison in comparisons:
        yield f"{comparison.first} to {comparison.second}", comparison.effect, True
        for kind, effect in comparison.kinds.items():
            yield kind, effect, False


def _grid(on: Axis, bottom: float) -> Iterator[str]:
    for tick in on.ticks:
        x = _x(tick.place)
        width = 2 if float(tick.label) == 0 else 1
        yield f"<path d='M{x:.1f},{_TOP}V{bottom}' stroke='{_GRID}' stroke-width='{width}'/>"
        yield f"<text x='{x:.1f}' y='{bottom + 16}' text-anchor='middle' {_STYLE}>{tick.label}</text>"


def _mark(on: Axis, y: float, label: str, effect: Effect, is_whole: bool) -> Iterator[str]:
    weight, indent = ("bold", 12) if is_whole else ("normal", 30)
    shown = escape(printable(label, _LONGEST))
    yield f"<text x='{indent}' y='{y + 4:.1f}' font-weight='{weight}' {_STYLE}>{shown}</text>"
    colour = _CLAIMED if effect.is_claimed else _OPEN
    low, value, high = (_x(on.position(100 * end)) for end in (effect.low, effect.difference, effect.high))
    if math.isfinite(effect.low):
        yield f"<path d='M{low:.1f},{y:.1f}H{high:.1f}' stroke='{colour}' stroke-width='2'/>"
    filling = colour if effect.is_claimed else "#ffffff"
    radius = 5.5 if is_whole else 4
    circle = f"cx='{value:.1f}' cy='{y:.1f}' r='{radius}' fill='{filling}'"
    yield f"<circle {circle} stroke='{colour}' stroke-width='2'/>"


def _x(place: float) -> float:
    return _LEFT + place / 100 * (_WIDTH - _LEFT - _RIGHT)
