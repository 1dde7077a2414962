"""Charts as inline SVG, in colours that the page's style sheet knows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 80.0, 52.0, 12.0, 46.0  # on the right the name of a mark at the very end has room
_MARK_HEIGHT = 15.0
_DECADES_WITH_HALVES = 2.5  # up to so many decades an axis shows 2 and 5 of each as well

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Axis:
    """A range of values and where ticks are.

    Attributes:
        low: the value at its beginning.
        high: the value at its end.
        log: whether it is logarithmic.
        ticks: values with a line.
        label: what it shows.
        shown: a tick in words.
    """

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]
    label: str
    shown: Callable[[float], str]

    def share(self, value: float) -> float:
        """Where a value lies, 0 being the beginning and 1 the end."""
        if self.log:
            low, high, value = math.log(self.low), math.log(self.high), math.log(max(value, self.low))
        else:
            low, high = self.low, self.high
        return min(max((value - low) / (high - low), 0.0), 1.0)


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: what it shows; the class of the style sheet follows from its place.
        points: (x, y); a y of None leaves a gap.
        style: class of the style sheet.
        dots: whether each point has a mark.
    """

    name: str
    points: Sequence[Point]
    style: str
    dots: bool = False


def linear_axis(
    high: float, label: str, shown: Callable[[float], str] = "{:,g}".format, *, whole: bool = False
) -> Axis:
    """From 0 to a round number at or above ``high``, of counts with ticks at ``whole`` numbers alone."""
    high = high if high > 0 else 1.0
    size = 10 ** math.floor(math.log10(high / 4))
    steps = [size * factor for factor in (1, 2, 2.5, 5, 10, 20)]
    step = next(step for step in steps if step * 5 >= high and not (whole and step % 1))
    count = math.ceil(high / step - 1e-9)
    return Axis(0.0, step * count, False, tuple(step * place for place in range(count + 1)), label, shown)


def time_axis(seconds: float, label: str) -> Axis:
    """From 0 to exactly so many seconds."""
    ticks = linear_axis(seconds, label).ticks
    return Axis(0.0, seconds, False, tuple(tick for tick in ticks if tick <= seconds * 1.0001), label, "{:g}".format)


def log_axis(low: float, high: float, label: str, shown: Callable[[float], str] = "{:,g}".format) -> Axis:
    """Powers of ten with 1, 2 and 5 around the values, all above 0."""
    low, high = max(low, 1e-6), max(high, 1e-6)
    steps = [factor * 10.0**power for power in range(-7, 10) for factor in (1, 2, 5)]
    first = max((step for step in steps if step <= low * 1.0001), default=steps[0])
    last = min((step for step in steps if step >= high * 0.9999), default=steps[-1])
    if last <= first:
        first, last = first / 2, last * 2
    every = math.log10(last / first) <= _DECADES_WITH_HALVES
    ticks = tuple(
        step
        for step in steps
        if first * 0.999 <= step <= last * 1.001 and (every or abs(math.log10(step) - round(math.log10(step))) < 1e-9)
    )
    return Axis(first, last, True, ticks, label, shown)


def line_chart(x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """Lines over one another."""
    return _svg(x, y, "".join(_line(x, y, line) for line in lines))


def histogram(x: Axis, y: Axis, bars: Sequence[tuple[float, float, float]], marks: Sequence[tuple[str, float]]) -> str:
    """Bars of (from, to, height) and named upright lines.

    Marks must be in ascending order; one that would run through names before it begins below them.
    """
    drawn = []
    for low, high, height in bars:
        left, right, top = _x(x, low), _x(x, high), _y(y, height)
        width = max(right - left - 0.6, 0.6)
        drawn.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{_y(y, y.low) - top:.1f}"/>'
        )
    ends: list[float] = []  # of the last name in each row
    for name, value in marks:
        at = _x(x, value)
        row = next((row + 1 for row in reversed(range(len(ends))) if ends[row] > at), 0)
        ends[row:] = [at + 4 + 7.5 * len(name)]
        top = _TOP + _MARK_HEIGHT * row
        drawn.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{_y(y, y.low):.1f}"/>')
        drawn.append(f'<text class="mark" x="{at + 4:.1f}" y="{top + 11:.1f}">{escape(name)}</text>')
    return _svg(x, y, "".join(drawn))


def _line(x: Axis, y: Axis, line: Line) -> str:
    pieces: list[list[str]] = [[]]
    dots = []
    for at, value in line.points:
        if value is None:
            pieces.append([])
            continue
        place = f"{_x(x, at):.1f},{_y(y, value):.1f}"
        pieces[-1].append(place)
        if line.dots or (len(line.points) == 1):
            left, _, top = place.partition(",")
            dots.append(f'<circle class="{line.style}" cx="{left}" cy="{top}" r="3.2"/>')
    # A point alone is no line; drawn twice it shows as a dot.
    drawn = [
        f'<polyline class="{line.style}" points="{" ".join(piece * (2 if len(piece) == 1 else 1))}"/>'
        for piece in pieces
        if piece
    ]
    return "".join(drawn + dots)


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.share(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.share(value) * (_HEIGHT - _TOP - _BOTTOM)


def _svg(x: Axis, y: Axis, content: str) -> str:
    parts = [f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" aria-hidden="true">']
    for tick in y.ticks:
        at = _y(y, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(y.shown(tick))}</text>')
    for tick in x.ticks:
        at = _x(x, tick)
        parts.append(
            f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{escape(x.shown(tick))}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>')
    half = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<text transform="translate(13 {half}) rotate(-90)" text-anchor="middle">{escape(y.label)}</text>')
    return "".join([*parts, content, "</svg>"])
