"""How the indexes were chosen: recall against speed of everything that was measured."""

from shortlist_trainer.export.index import BuiltIndex, IndexPoint
from shortlist_trainer.export.report import charts
from shortlist_trainer.export.report.blocks import count, facts, figure, kind_of, section, tile
from shortlist_trainer.export.report.content import ReportContent
from shortlist_trainer.export.report.markup import Markup, tag

NAME = "indexes"
TILE = "index-recall"
"""Ids of what changes when a version gets other indexes."""


def indexes(content: ReportContent) -> Markup:
    """Kind, recall and speed of both indexes, and the curves that they were chosen from."""
    return index_section(content.items, content.neighbours)


def index_section(items: BuiltIndex, neighbours: BuiltIndex, note: str = "") -> Markup:
    """The section of these indexes.

    Args:
        items: user -> items.
        neighbours: item -> items.
        note: said first.
    """
    sides = (("items", "User to items", items), ("neighbours", "Item to items", neighbours))
    cards = tag("div", *(facts(heading, _facts(index)) for _, heading, index in sides), class_="cards")
    drawn = [(name, heading, index) for name, heading, index in sides if any(_is_approximate(p) for p in index.curve)]
    figures = [
        figure(
            f"{heading}: recall against speed",
            "up and to the right is better; the chosen index is marked",
            charts.recall_curve(f"{NAME}-{name}", index.curve, None if index.goal is None else index.goal.recall),
        )
        for name, heading, index in drawn
    ]
    tables = [part for _, heading, index in drawn for part in _table(heading, index)]
    text = (
        "Recall is the share of the true best items that a search returns, by real queries that had no say in the "
        "choice. Times are lower quartiles on one thread of the machine that published this version."
    )
    parts = [cards, *([tag("div", *figures, class_="charts")] if figures else []), *tables]
    return section(NAME, "How it searches", f"{note} {text}".strip(), *parts)


def recall_tile(index: BuiltIndex) -> Markup:
    """The recall that the head of the page shows."""
    k, recall = min(index.recalls.items())
    shown = tile(f"Index recall@{k}", f"{recall:.3f}", f"of the true best {k}, by {kind_of(index)}")
    return Markup(shown.replace("<div>", f'<div id="{TILE}">', 1))


def _facts(index: BuiltIndex) -> list[tuple[str, str]]:
    facts = [("kind", kind_of(index))]
    facts += [(name, f"{value:,.6g}") for name, value in index.search_parameters.items()]
    facts += [(f"recall@{k}", f"{recall:.4f}") for k, recall in sorted(index.recalls.items())]
    facts.append(("measured on", count(index.recall_queries, "query", "queries")))
    if index.goal is not None:
        facts.append(("asked for", str(index.goal)))
    return [*facts, ("why", index.why)] if index.why else facts


def _is_approximate(point: IndexPoint) -> bool:
    return not point.kind.startswith("flat")


def _table(heading: str, index: BuiltIndex) -> list[Markup]:
    """Of every kind, the cheapest setting that reaches the target, or else the one that finds the most."""
    target = 0.0 if index.goal is None else index.goal.recall
    kinds: dict[tuple[str, str], IndexPoint] = {}
    for point in sorted(index.curve, key=lambda point: (-min(point.recall, target), point.cost)):
        kinds.setdefault((point.kind, point.transform), point)
    chosen = next((point for point in index.curve if point.chosen), None)
    if chosen is not None:
        kinds[chosen.kind, chosen.transform] = chosen
    names = ("recall", "µs alone", "µs in a batch", "MB")
    columns = (tag("th", name, scope="col", class_="number") for name in names)
    head = tag("tr", tag("th", heading, scope="col"), *columns)
    rows = []
    for point in sorted(kinds.values(), key=lambda point: point.cost):
        figures = (
            f"{point.recall:.4f}",
            f"{point.single_query_micros:,.0f}",
            f"{point.batch_micros_per_query:,.0f}",
            f"{point.bytes / 1e6:,.1f}",
        )
        name = tag("strong", point.name, " (chosen)") if point.chosen else point.name
        rows.append(tag("tr", tag("th", name, scope="row"), *(tag("td", text, class_="number") for text in figures)))
    table = tag("div", tag("table", tag("thead", head), tag("tbody", *rows), class_="metrics"), class_="scroll")
    left_out = [tag("p", "Left out: ", "; ".join(index.left_out), ".", class_="note")] if index.left_out else []
    return [table, *left_out]
