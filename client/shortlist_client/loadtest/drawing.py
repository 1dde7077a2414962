"""Charts as inline SVG, in colours and sizes of text that the page's style sheet knows.

A page may be as narrow as a telephone: the drawing is small, so that little is lost of it, and has room for text of
``TEXT_SIZE``, in which the style sheet shows it there.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, _HEIGHT = 440.0, 260.0
"""Of a drawing, in its own units."""
TEXT_SIZE = 16.0
"""The largest in which a style sheet may show text, in units of the drawing."""
_LETTER = 0.65 * TEXT_SIZE  # the widest digit of a common font; a bold one needs a little more
_BOLD_LETTER = 0.7 * TEXT_SIZE
_GAP = 8.0
_TOP, _BOTTOM = 36.0, 46.0  # at the top the vertical axis says what it shows
_MARK_HEIGHT = 17.0
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
    plane = _Plane(x, y, _width(x.shown(x.ticks[-1])) / 2)
    return plane.svg("".join(_line(plane, line) for line in lines))


def histogram(x: Axis, y: Axis, bars: Sequence[tuple[float, float, float]], marks: Sequence[tuple[str, float]]) -> str:
    """Bars of (from, to, height) and named upright lines.

    Marks must be in ascending order; one that would run through names before it begins below them.
    """
    plane = _Plane(x, y, 4 + max(len(name) for name, _ in marks) * _BOLD_LETTER)
    drawn = []
    for low, high, height in bars:
        left, right, top = plane.x(low), plane.x(high), plane.y(height)
        width = max(right - left - 0.6, 0.6)
        drawn.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{plane.bottom - top:.1f}"/>'
        )
    ends: list[float] = []  # of the last name in each row
    for name, value in marks:
        at = plane.x(value)
        row = next((row + 1 for row in reversed(range(len(ends))) if ends[row] > at), 0)
        ends[row:] = [at + 4 + _BOLD_LETTER * len(name)]
        top = _TOP + _MARK_HEIGHT * row
        drawn.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{plane.bottom:.1f}"/>')
        drawn.append(f'<text class="mark" x="{at + 4:.1f}" y="{top + 13:.1f}">{escape(name)}</text>')
    return plane.svg("".join(drawn))


def _width(text: str) -> float:
    return _LETTER * len(text)


class _Plane:
    """Where values lie in a drawing.

    Args:
        x: the horizontal axis.
        y: the vertical one, whose numbers have room on the left.
        right: room on the right, for what is written beside the very end of the horizontal axis.
    """

    def __init__(self, x: Axis, y: Axis, right: float) -> None:
        self._horizontal, self._vertical = x, y
        self._left = _GAP + max(_width(y.shown(tick)) for tick in y.ticks)
        self._right = WIDTH - right
        self.bottom = _HEIGHT - _BOTTOM

    def x(self, value: float) -> float:
        return self._left + self._horizontal.share(value) * (self._right - self._left)

    def y(self, value: float) -> float:
        return self.bottom - self._vertical.share(value) * (self.bottom - _TOP)

    def svg(self, content: str) -> str:
        """The drawing: the axes, and the content over them."""
        x, y = self._horizontal, self._vertical
        parts = [f'<svg viewBox="0 0 {WIDTH:g} {_HEIGHT:g}" aria-hidden="true">']
        for tick in y.ticks:
            at = self.y(tick)
            parts.append(
                f'<line class="grid" x1="{self._left:.1f}" x2="{self._right:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'
            )
            parts.append(
                f'<text x="{self._left - _GAP:.1f}" y="{at + 4:.1f}" text-anchor="end">{escape(y.shown(tick))}</text>'
            )
        below = self.bottom + 20
        parts += [
            f'<text x="{self.x(tick):.1f}" y="{below:.1f}" text-anchor="middle">{escape(x.shown(tick))}</text>'
            for tick in self._named()
        ]
        middle = (self._left + self._right) / 2
        parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 5:.1f}" text-anchor="middle">{escape(x.label)}</text>')
        # Over the numbers, and beyond them where it is longer.
        end = max(self._left - _GAP, _width(y.label))
        parts.append(f'<text x="{end:.1f}" y="13" text-anchor="end">{escape(y.label)}</text>')
        return "".join([*parts, content, "</svg>"])

    def _named(self) -> Sequence[float]:
        """Ticks of the horizontal axis: all, or as many as have room for their names, evenly apart."""
        axis = self._horizontal
        # Of 1, 2, 5, 10, … every third is left, so that each is ten times the one before.
        steps = (1, 3, 6) if axis.log else range(1, len(axis.ticks))
        choices = [axis.ticks[::step] for step in steps]
        return next((ticks for ticks in choices if self._have_room(ticks)), axis.ticks[:1])

    def _have_room(self, ticks: Sequence[float]) -> bool:
        ends = [(self.x(tick), _width(self._horizontal.shown(tick)) / 2) for tick in ticks]
        return all(at + half + _GAP <= other - more for (at, half), (other, more) in itertools.pairwise(ends))


def _line(plane: _Plane, line: Line) -> str:
    pieces: list[list[str]] = [[]]
    dots = []
    for at, value in line.points:
        if value is None:
            pieces.append([])
            continue
        place = f"{plane.x(at):.1f},{plane.y(value):.1f}"
        pieces[-1].append(place)
        if line.dots or (len(line.points) == 1):
            left, _, top = place.partition(",")
            dots.append(f'<circle class="{line.style}" cx="{left}" cy="{top}" r="2.6"/>')
    # A point alone is no line; drawn twice it shows as a dot.
    drawn = [
        f'<polyline class="{line.style}" points="{" ".join(piece * (2 if len(piece) == 1 else 1))}"/>'
        for piece in pieces
        if piece
    ]
    return "".join(drawn + dots)
