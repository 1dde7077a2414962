"""What the parts of the page are built of."""

import datetime as dt
from collections.abc import Iterable

import numpy as np

from shortlist_trainer.export.index import BuiltIndex
from shortlist_trainer.export.report.content import ReportContent
from shortlist_trainer.export.report.markup import Markup, tag

_LONGEST_TITLE = 70


def tile(name: str, value: str, note: str | None) -> Markup:
    """A figure with its name above and a remark below."""
    return tag(
        "div", tag("p", name, class_="name"), tag("p", value, class_="value"), tag("p", note or "", class_="note")
    )


def facts(heading: str, values: Iterable[tuple[str, str]]) -> Markup:
    """A card of names and values."""
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in values]
    return tag("div", tag("h4", heading), tag("dl", *rows), class_="card")


def section(name: str, heading: str, note: str, *children: Markup) -> Markup:
    """A part of the page under a heading, with a sentence or two on what it shows."""
    return tag("section", tag("h2", heading), tag("p", note, class_="note"), *children, id=name)


def figure(heading: str, takeaway: str, drawing: Markup) -> Markup:
    """A drawing under its name and what a reader should take away."""
    caption = tag("figcaption", tag("strong", heading), " ", tag("span", takeaway, class_="muted"))
    image = tag("div", drawing, role="img", aria_label=f"{heading}: {takeaway}" if takeaway else heading)
    return tag("figure", caption, image)


def clipped(text: str) -> str:
    """A title cut to what a line or two can hold."""
    return text if len(text) <= _LONGEST_TITLE else text[: _LONGEST_TITLE - 1].rstrip() + "…"


def count(number: int, one: str, many: str | None = None) -> str:
    """A number of things: "1 item", "2 items"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def short(value: float) -> str:
    """A figure of any kind in few digits."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def spread(figures: tuple[int, float, int]) -> str:
    """Least, most and median interactions."""
    least, median, most = figures
    if least == most:
        return f"{count(least, 'interaction')} each"
    return f"{least:,} to {most:,} interactions each, median {median:,.0f}"


def duration(seconds: float) -> str:
    """A time that a person can picture."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return count(minutes, "minute") if minutes < 120 else f"{minutes / 60:.1f} hours"


def kind_of(index: BuiltIndex) -> str:
    """The kind of an index in words."""
    named = "exact search" if index.kind == "flat" else index.kind
    return named if index.transform == "none" else f"{named}, {index.transform}"


def period_of(content: ReportContent) -> str | None:
    """The months of the first and last interaction; None where the data has no time."""
    if content.statistics.first_and_last is None:
        return None
    first, last = (_month(time) for time in content.statistics.first_and_last)
    return first if first == last else f"{first} to {last}"


def _month(seconds: int) -> str:
    # Timestamps of any year: datetime stops at 9999.
    year, month = str(np.datetime64(seconds, "s").astype("datetime64[M]")).rsplit("-", 1)
    return f"{dt.date(2000, int(month), 1):%B} {year}"
