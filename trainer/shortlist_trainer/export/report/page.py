"""The page: its parts in the order in which a reader asks, put together and written."""

import logging
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from shortlist_trainer.export.report import indexes, quality, sections
from shortlist_trainer.export.report.content import ReportContent
from shortlist_trainer.export.report.markup import Markup, tag

_PARTS: tuple[Callable[[ReportContent], Markup], ...] = (
    quality.heading,
    quality.quality,
    sections.recommendations,
    sections.neighbours,
    sections.map_and_clusters,
    sections.training,
    sections.data,
    indexes.indexes,
    sections.making,
)
_log = logging.getLogger(__name__)


def write_report(path: Path, content: ReportContent) -> None:
    """Writes the report as one HTML file that asks nothing of the network. Equal content gives equal bytes.

    A part that cannot be drawn says so in its place: the report is no reason to lose a trained model.

    Args:
        path: the file to write.
        content: what to tell of.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(_page(content), encoding="utf-8", newline="\n")


def _page(content: ReportContent) -> str:
    style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        # The browser itself holds the page to asking nothing of the network.
        Markup(
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        ),
        Markup('<meta name="color-scheme" content="light dark">'),
        tag("title", f"{content.model_name}, version {content.version}"),
        tag("style", Markup(style)),
    )
    parts = [_drawn(part, content) for part in _PARTS]
    body = tag("body", tag("main", *parts))
    return "<!DOCTYPE html>\n" + tag("html", head, "\n", body, lang="en") + "\n"


def _drawn(part: Callable[[ReportContent], Markup], content: ReportContent) -> Markup:
    try:
        return part(content)
    except Exception as error:  # noqa: BLE001 - hours of training weigh more than any part of a page
        name = part.__name__.replace("_", " ")
        _log.warning("the report's part %r could not be drawn: %s", name, error)
        return tag("section", tag("p", f"The part “{name}” could not be drawn: {error}", class_="note"))
