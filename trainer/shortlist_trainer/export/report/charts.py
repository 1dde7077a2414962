"""The charts of a report as inline SVG, drawn by matplotlib in colours that the page's style sheet fills in.

No text of the data is drawn here, so that no title can lack a glyph or be read as mathematics.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from shortlist_trainer.data.statistics import HEAD_SHARE
from shortlist_trainer.export.index import IndexPoint
from shortlist_trainer.export.report.markup import Markup
from shortlist_trainer.models.history import EpochRecord

# Colours that nobody sees: each stands for a variable of the style sheet, which knows of light and dark.
_INK, _MUTED, _GRID, _SERIES, _ACCENT = "#000001", "#000002", "#000003", "#000004", "#000005"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--grid", _SERIES: "--series", _ACCENT: "--accent"}

_SIZE_INCHES = (6.4, 3.3)
_MOST_BARS = 24  # of a histogram of distinct values; with more of them, values are put into bins
_MOST_POINTS = 400  # of a curve: more than its pixels show
_WIDE_RANGE = 50  # the ratio of the largest figure to the smallest from which on an axis is logarithmic

_MARKERS = "osD^vP<>X*"  # of a curve for each kind of index

_STYLE: dict[Any, Any] = {  # matplotlib types the keys as a list of literals that grows
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font and colour
    "font.size": 11.0,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}


def _svg(name: str, draw: Callable[[Axes], None]) -> Markup:
    """What ``draw`` draws on a pair of axes, as an element for a page on which ``name`` is unique."""
    out = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # equal input shall give equal bytes
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    # Several drawings share one page, and an id may be there once.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'\b(?:xlink:)?href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg, count=1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return Markup(svg.strip())


def rating_histogram(rating_counts: Mapping[float, int]) -> Markup:
    """A bar for each rating, or for each of a few ranges where the ratings are of many values."""
    values, counts = np.array(list(rating_counts)), np.array(list(rating_counts.values()))
    width = 0.8 * float(np.diff(values).min()) if len(values) > 1 else 0.8
    if len(values) > _MOST_BARS:
        counts, edges = np.histogram(values, bins=_MOST_BARS, weights=counts)
        values, width = (edges[:-1] + edges[1:]) / 2, 0.9 * float(edges[1] - edges[0])

    def draw(axes: Axes) -> None:
        bars = axes.bar(values, counts, width=width, color=_SERIES)
        if len(values) <= 10:
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.bar_label(bars, [f"{count / counts.sum():.0%}" for count in counts], padding=3, color=_INK)
            axes.margins(y=0.1)
        if len(values) == 1:
            axes.set_xlim(values[0] - 2, values[0] + 2)
        axes.set_xlabel("rating")
        axes.set_ylabel("interactions")
        _plain_counts(axes, "y")

    return _svg("ratings", draw)


def long_tail(popularity: npt.NDArray[np.int64]) -> Markup:
    """Interactions of each item from the most popular to the least, the head set apart from the tail.

    Args:
        popularity: (items,) interactions of each item, in any order.
    """
    counts = np.sort(popularity)[::-1]
    head = round(len(counts) * HEAD_SHARE)
    places = _thinned(len(counts))

    def draw(axes: Axes) -> None:
        axes.plot(places + 1, counts[places], color=_SERIES)
        if counts[counts > 0].min() * _WIDE_RANGE < counts[0]:
            axes.set_yscale("log", nonpositive="clip")
            axes.set_ylim(bottom=counts[counts > 0].min() * 0.8, top=counts[0] * 1.6)
        else:
            axes.set_ylim(bottom=0, top=counts[0] * 1.15)
        _no_minor_labels(axes)
        axes.set_xlim(1 - 0.01 * len(counts), len(counts) * 1.01)
        if 0 < head < len(counts):
            share = counts[:head].sum() / counts.sum()
            axes.axvspan(1 - 0.01 * len(counts), head, color=_ACCENT, alpha=0.13, linewidth=0)
            _note(axes, head, f"the head: {HEAD_SHARE:.0%} of the items,\n{share:.0%} of the interactions")
        axes.set_xlabel("items, the most popular first")
        axes.set_ylabel("interactions")
        _plain_counts(axes, "xy")

    return _svg("long-tail", draw)


def activity(per_user: npt.NDArray[np.int64]) -> Markup:
    """How many users have how many interactions.

    Args:
        per_user: (users,) interactions of each user; users without any are left out.
    """
    counts = per_user[per_user > 0]
    least, most = int(counts.min()), int(counts.max())

    def draw(axes: Axes) -> None:
        if most >= _WIDE_RANGE * least or most > 100:
            edges: npt.NDArray[np.floating] = np.unique(np.round(np.geomspace(least, most + 1, 25)))
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        else:
            edges = np.arange(least, most + 2, max(1, (most - least) // 20)) - 0.5
            edges = np.append(edges, most + 0.5) if edges[-1] < most else edges
        users, _ = np.histogram(counts, edges)
        axes.bar(edges[:-1], users, width=0.94 * np.diff(edges), align="edge", color=_SERIES)
        median = float(np.median(counts))
        axes.axvline(median, color=_ACCENT, linewidth=1.5)
        axes.margins(y=0.14)
        _note(axes, median, f"median {median:,.0f}")
        axes.set_xlabel("interactions of a user")
        axes.set_ylabel("users")
        _no_minor_labels(axes)
        _plain_counts(axes, "xy")

    return _svg("activity", draw)


def over_time(timestamps: npt.NDArray[np.int64]) -> Markup:
    """Interactions along time.

    Args:
        timestamps: (n,) seconds since 1970, of at least two moments.
    """
    first, last = int(timestamps.min()), int(timestamps.max())
    counts, edges = np.histogram(timestamps.astype(np.float64), bins=40, range=(first, last))
    days = (last - first) / 86_400
    unit: Literal["m", "D", "M"] = "m" if days < 4 else "D" if days < 1_000 else "M"
    ticks = np.linspace(first, last, 4)
    dates = np.datetime_as_string(ticks.astype(np.int64).astype("datetime64[s]"), unit=unit)

    def draw(axes: Axes) -> None:
        axes.stairs(counts, edges, fill=True, color=_SERIES, linewidth=0)
        axes.set_xticks(ticks, [str(date).replace("T", "\n") for date in dates])
        labels = axes.get_xticklabels()
        labels[0].set_horizontalalignment("left")
        labels[-1].set_horizontalalignment("right")
        axes.margins(x=0)
        axes.set_ylabel("interactions")
        _plain_counts(axes, "y")

    return _svg("time", draw)


def curve(name: str, epochs: Sequence[EpochRecord], figures: Sequence[float], label: str, best: int | None) -> Markup:
    """A figure after each epoch, the best epoch marked.

    Args:
        name: of the drawing, unlike that of any other on the page.
        epochs: in the order they were run.
        figures: one for each epoch.
        label: what the figures are.
        best: the epoch to mark, where one is known.
    """
    numbers = [record.epoch for record in epochs]

    def draw(axes: Axes) -> None:
        axes.plot(numbers, figures, color=_SERIES, marker="o", markersize=4 if len(numbers) < 50 else 0)
        axes.margins(y=0.15)
        if best in numbers:
            figure = figures[numbers.index(best)]
            axes.axvline(best, color=_ACCENT, linewidth=1.5, linestyle=(0, (4, 3)))
            axes.plot([best], [figure], color=_ACCENT, marker="o", markersize=8)
            late = numbers.index(best) > len(numbers) / 2
            _note(axes, best, f"best: epoch {best}, {figure:.4g}", on_the_left=late)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(numbers) == 1:
            axes.set_xlim(numbers[0] - 1, numbers[0] + 1)

    return _svg(name, draw)


def recall_curve(name: str, points: Sequence[IndexPoint], target: float | None) -> Markup:
    """Recall against queries a second on one core, a line for each kind of index, the chosen point marked.

    Args:
        name: of the drawing, unlike that of any other on the page.
        points: what was measured.
        target: the recall that was asked for; None where none was.
    """
    kinds: dict[tuple[str, str], list[IndexPoint]] = {}
    for point in points:
        kinds.setdefault((point.kind, point.transform), []).append(point)

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.grid(visible=True, axis="both")
        if target is not None:
            axes.axhline(target, color=_MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        for place, measured in enumerate(kinds.values()):
            ordered = sorted(measured, key=lambda point: point.cost)
            rates, recalls = [1e6 / point.cost for point in ordered], [point.recall for point in ordered]
            axes.plot(rates, recalls, color=_SERIES, alpha=0.75, linewidth=1.2, marker=_MARKERS[place % len(_MARKERS)])
            end = int(np.argmax(recalls))
            label = ordered[end].kind if ordered[end].transform == "none" else f"{ordered[end].kind} L2"
            # Lines meet near the top: their names hang below one another.
            offset = (4, -4 - 12 * (place % 4))
            axes.annotate(label, (rates[end], recalls[end]), offset, textcoords="offset points", va="top", fontsize=9)
        for point in points:
            if point.chosen:
                axes.plot([1e6 / point.cost], [point.recall], color=_ACCENT, marker="o", markersize=9, linestyle="")
                _note(axes, 1e6 / point.cost, f"chosen: {point.kind}, {point.recall:.3f}", on_the_left=True)
        lowest = min(point.recall for point in points)
        axes.set_ylim(max(0.0, min(lowest, 0.98)) - 0.02, 1 + 0.12 * (1 - min(lowest, 0.98)))
        axes.margins(x=0.15)
        axes.set_xlabel("queries/s on one core: the geometric mean of alone and in batches")
        axes.set_ylabel("recall")
        _no_minor_labels(axes)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))

    return _svg(name, draw)


def _note(axes: Axes, x: float, text: str, *, on_the_left: bool = False) -> None:
    """Words at the top of a chart, beside the vertical line at ``x``."""
    axes.annotate(
        text,
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if on_the_left else 6, -4),
        textcoords="offset points",
        ha="right" if on_the_left else "left",
        va="top",
    )


def _thinned(count: int) -> npt.NDArray[np.int64]:
    """Up to ``_MOST_POINTS`` of the places 0 to ``count`` - 1, the first and last among them, close at the start."""
    few = np.geomspace(1, count, _MOST_POINTS // 2)
    even = np.linspace(1, count, _MOST_POINTS // 2)
    return np.unique(np.round(np.concatenate([few, even]))).astype(np.int64) - 1


def _plain_counts(axes: Axes, which: str) -> None:
    """Whole numbers with commas instead of powers of ten."""
    for letter, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if letter in which:
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            if axis.get_scale() == "linear":
                axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def _no_minor_labels(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
        axis.set_minor_locator(NullLocator())
