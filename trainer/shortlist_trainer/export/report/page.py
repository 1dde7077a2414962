"""The page: sections in the order in which a reader asks, put together and written."""

import datetime as dt
import logging
import math
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path

import numpy as np

from shortlist_trainer.data.statistics import HEAD_SHARE
from shortlist_trainer.evaluation.protocols import EvaluationResult
from shortlist_trainer.export.index import BuiltIndex
from shortlist_trainer.export.report import charts
from shortlist_trainer.export.report.content import ReportContent
from shortlist_trainer.export.report.embedding_map import OTHERS, EmbeddingMap, draw_map, first_titles
from shortlist_trainer.export.report.markup import Markup, join, tag
from shortlist_trainer.export.report.metrics import (
    best_of,
    compare,
    display_name,
    figure,
    headlines,
    meaning_of,
)
from shortlist_trainer.export.report.samples import SampleUser, Scored, sample_neighbours, sample_users

_NOTHING = Markup("")
_LONGEST_TITLE = 70
_TOP_TITLES = 8  # of a cluster
_MOST_CLUSTERS = 24  # of users, and as many of items
_OWN = ""  # the model's own row of metrics, unlike the name of any baseline
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
    parts = [_drawn(part, content) for part in (_heading, *_SECTIONS)]
    body = tag("body", tag("main", *parts))
    return "<!DOCTYPE html>\n" + tag("html", head, "\n", body, lang="en") + "\n"


def _drawn(part: Callable[[ReportContent], Markup], content: ReportContent) -> Markup:
    try:
        return part(content)
    except Exception as error:  # noqa: BLE001 - hours of training weigh more than any part of a page
        name = part.__name__.lstrip("_").replace("_", " ")
        _log.warning("the report's part %r could not be drawn: %s", name, error)
        return tag("section", tag("p", f"The part “{name}” could not be drawn: {error}", class_="note"))


def _heading(content: ReportContent) -> Markup:
    tiles = [_metric_tile(content.evaluation, metric) for metric in headlines(content.evaluation)[:2]]
    recalls = content.items.recalls
    tiles += [
        _tile(f"Index recall@{k}", f"{recalls[k]:.3f}", f"of the true best {k}, by {_kind_of(content.items)}")
        for k in sorted(recalls)[:1]
    ]
    vectors = content.embeddings.items.shape
    tiles.append(_tile("Items", f"{vectors[0]:,}", f"embeddings of {vectors[1]} columns"))
    return tag(
        "header",
        tag("p", "Shortlist model report", class_="eyebrow"),
        tag("h1", content.model_name, " ", tag("span", f"version {content.version}")),
        tag("p", _summary(content), class_="lead"),
        tag("div", *tiles, class_="tiles"),
    )


def _tile(name: str, value: str, note: str | None) -> Markup:
    return tag(
        "div", tag("p", name, class_="name"), tag("p", value, class_="value"), tag("p", note or "", class_="note")
    )


def _metric_tile(result: EvaluationResult, metric: str) -> Markup:
    compared = compare(result, metric)
    note = None if compared is None else f"{compared.relation} {compared.baseline}"
    return _tile(display_name(metric), figure(result.metrics[metric]), note)


def _summary(content: ReportContent) -> str:
    """What model, what data, when; and how good it is beside the strongest baseline."""
    data, result = content.statistics, content.evaluation
    when = _period(content)
    made = (
        f"{content.model_name} learned from {data.interactions:,} interactions of {data.users:,} users with "
        f"{data.items:,} items in {content.dataset.name}{f' ({when})' if when else ''}, and was published on "
        f"{content.created.day} {content.created:%B %Y}."
    )
    metrics = headlines(result)
    if not metrics:
        return f"{made} It was not evaluated."
    metric = metrics[0]
    what = "predicts held-out ratings" if meaning_of(metric).better == "lower" else "ranks held-out items"
    text = f"{made} It {what} with {display_name(metric)} {result.metrics[metric]:.3f}"
    compared = compare(result, metric)
    if compared is None:
        return f"{text}."
    name = "recommending the popular" if compared.baseline == "popular" else f"the {compared.baseline}"
    return f"{text}, {compared.relation} {name} ({compared.value:.3f})."


def _period(content: ReportContent) -> str | None:
    if content.statistics.first_and_last is None:
        return None
    first, last = (_month(time) for time in content.statistics.first_and_last)
    return first if first == last else f"{first} to {last}"


def _month(seconds: int) -> str:
    # Timestamps of any year: datetime stops at 9999.
    year, month = str(np.datetime64(seconds, "s").astype("datetime64[M]")).rsplit("-", 1)
    return f"{dt.date(2000, int(month), 1):%B} {year}"


def _quality(content: ReportContent) -> Markup:
    result = content.evaluation
    if not result.metrics:
        return _section("quality", "How good it is", "This version was published without an evaluation.")
    rows = {_OWN: result.metrics, **result.baselines}
    head = tag(
        "tr",
        tag("th", "metric", scope="col"),
        *(tag("th", name or content.model_name, scope="col", class_="number") for name in rows),
        tag("th", "what it says", scope="col"),
    )
    body = []
    for metric in result.metrics:
        best = best_of(metric, rows)
        meaning = meaning_of(metric)
        arrow = {"higher": " ↑", "lower": " ↓", None: ""}[meaning.better]
        cells = [_metric_cell(row.get(metric), rows, metric, is_best=name == best) for name, row in rows.items()]
        name = tag("th", display_name(metric), tag("span", arrow, class_="muted"), scope="row")
        body.append(tag("tr", name, *cells, tag("td", meaning.text, class_="meaning")))
    table = tag("div", tag("table", tag("thead", head), tag("tbody", *body), class_="metrics"), class_="scroll")
    note = (
        f"Protocol {result.protocol}, split {result.split}: trained on {result.training_interactions:,} interactions "
        f"and judged by {result.test_interactions:,}, of which {result.cold_interactions:,} are of users or items that "
        "training does not know. "
        + ("The published vectors were then trained again on all interactions. " if content.refit_on_all else "")
        + "↑ higher is better, ↓ lower is better, the best in bold; without an arrow it is a matter of taste."
    )
    return _section("quality", "How good it is", note, table)


def _metric_cell(value: float | None, rows: dict[str, dict[str, float]], metric: str, *, is_best: bool) -> Markup:
    if value is None:
        return tag("td", "—", class_="number muted")
    most = max((abs(row[metric]) for row in rows.values() if math.isfinite(row.get(metric, math.nan))), default=0)
    text = tag("strong", figure(value, most)) if is_best else figure(value, most)
    bar = _NOTHING
    if most > 0 and math.isfinite(value):
        bar = tag("span", class_="bar", style=f"width:{100 * abs(value) / most:.1f}%")
    return tag("td", text, tag("span", bar, class_="track"), class_="number best" if is_best else "number")


def _training(content: ReportContent) -> Markup:
    history = content.history
    epochs = history.epochs if history is not None else ()
    if history is None or not epochs:
        return _NOTHING
    losses = [record for record in epochs if math.isfinite(record.loss)]
    measured = [(record, record.metric) for record in epochs if record.metric is not None]
    measured = [(record, value) for record, value in measured if math.isfinite(value)]
    figures = []
    if losses:
        ends = f"from {losses[0].loss:.4g} to {losses[-1].loss:.4g}" if len(losses) > 1 else f"{losses[0].loss:.4g}"
        drawing = charts.curve("loss", losses, [record.loss for record in losses], "mean training loss", None)
        figures.append(_figure("Training loss", ends, drawing))
    if measured:
        name = display_name(history.metric_name or "metric")
        best = "" if history.best_epoch is None else f"the parameters of epoch {history.best_epoch} were kept"
        numbers = [value for _, value in measured]
        drawing = charts.curve("validation", [record for record, _ in measured], numbers, name, history.best_epoch)
        figures.append(_figure(f"Validation {name}", best, drawing))
    seconds = sum(record.seconds for record in epochs)
    note = f"{_count(len(epochs), 'epoch')} in {_duration(seconds)}, {_duration(seconds / len(epochs))} each."
    return _section("training", "How it learned", note, tag("div", *figures, class_="charts"))


def _data(content: ReportContent) -> Markup:
    data, dataset = content.statistics, content.dataset
    interactions = dataset.interactions
    period = _period(content)
    facts = [
        ("Users", f"{data.users:,}", _spread(data.interactions_per_user)),
        ("Items", f"{data.items:,}", _spread(data.interactions_per_item)),
        ("Interactions", f"{data.interactions:,}", f"{dataset.duplicates_merged:,} duplicates merged"),
        ("Density", f"{data.density:.2%}", "of all pairs of a user and an item"),
        ("Long tail", f"{data.long_tail_share:.0%}", f"with the least popular {1 - HEAD_SHARE:.0%} of the items"),
    ]
    figures = []
    if data.rating_counts:
        count = sum(data.rating_counts.values())
        mean = sum(rating * number for rating, number in data.rating_counts.items()) / count
        figures.append(_figure("Ratings", f"mean {mean:.2f}", charts.rating_histogram(data.rating_counts)))
    figures.append(_figure("The long tail", "how unevenly items are touched", charts.long_tail(content.popularity)))
    figures.append(
        _figure(
            "Activity", "how much there is to learn from a user", charts.activity(np.diff(interactions.user_offsets()))
        )
    )
    if interactions.timestamps is not None and data.first_and_last is not None and np.ptp(interactions.timestamps) > 0:
        figures.append(_figure("Along time", period or "", charts.over_time(interactions.timestamps)))
    note = f"{dataset.name}, read as {dataset.format}" + (
        f"; {dataset.bad_rows_skipped:,} malformed rows were left out." if dataset.bad_rows_skipped else "."
    )
    tiles = tag("div", *(_tile(*fact) for fact in facts), class_="tiles small")
    return _section("data", "What it learned from", note, tiles, tag("div", *figures, class_="charts"))


def _map_and_clusters(content: ReportContent) -> Markup:
    drawn = draw_map(content)
    map_section = _NOTHING if drawn is None else _map(content, drawn)
    colours = {} if drawn is None else drawn.group_of_cluster
    return join([map_section, _clusters(content, colours)])


def _map(content: ReportContent, drawn: EmbeddingMap) -> Markup:
    whole = len(content.titles) == drawn.items
    which = f"all {drawn.items:,} items" if whole else f"the {drawn.items:,} most popular items"
    alike = "are rated alike by" if content.embeddings.score_kind == "rating" else "are touched by"
    note = (
        f"Embeddings of {which} on a plane ({drawn.method}): items that lie together {alike} the same users. "
        "Larger points are more popular; point at one to read its title."
    )
    first = {} if content.clustering is None else first_titles(content.clustering)
    colours = [
        _key(name, first.get(name), count, "gx" if name == OTHERS else f"g{place}")
        for place, (name, count) in enumerate(drawn.groups)
    ]
    key = tag("ul", tag("li", f"Coloured by {drawn.coloured_by}", class_="title"), *colours, class_="keys")
    figure_of_map = tag(
        "figure",
        tag("div", drawn.drawing, role="img", aria_label=f"Map of {which} by {drawn.method}", class_="canvas"),
        key if drawn.groups else _NOTHING,
        class_="with-keys" if drawn.groups else None,
    )
    return _section("map", "The map of the items", note, figure_of_map)


def _key(name: str, example: str | None, count: int, colour: str) -> Markup:
    swatch, number = tag("i", class_=f"swatch {colour}"), tag("span", f"{count:,}", class_="muted")
    words = tag("span", _clipped(name), *([] if example is None else [tag("small", _clipped(example))]))
    return tag("li", swatch, words, number, class_=f"key {colour}", tabindex="0")


def _clusters(content: ReportContent, colours: dict[int, int]) -> Markup:
    if content.clustering is None or not content.clustering.clusters:
        return _NOTHING
    parts = []
    for kind, words in (("items", "Clusters of items"), ("users", "Clusters of users")):
        clusters = [cluster for cluster in content.clustering.clusters if cluster.kind == kind]
        cards = []
        for cluster in clusters[:_MOST_CLUSTERS]:
            colour = colours.get(cluster.label) if kind == "items" else None
            swatch = _NOTHING if colour is None else tag("i", class_=f"swatch g{colour}")
            top = [
                tag("li", tag("span", _clipped(title)), tag("span", _short(value), class_="muted"))
                for title, value in cluster.top[:_TOP_TITLES]
            ]
            size = tag("span", _count(cluster.size, kind[:-1]), class_="muted")
            heading = tag("h4", swatch, f"Cluster {cluster.label}", size)
            cards.append(tag("div", heading, tag("ol", *top, class_="pairs"), class_="card"))
        if cards:
            parts += [tag("h3", words), tag("div", *cards, class_="cards")]
        if len(clusters) > len(cards):
            parts.append(tag("p", f"and {len(clusters) - len(cards):,} more", class_="note"))
    note = f"Top items of each cluster, with their {content.clustering.figure_name}."
    return _section("clusters", "The clusters", note, *parts)


def _recommendations(content: ReportContent) -> Markup:
    users = sample_users(content)
    unit = "predicted rating" if content.embeddings.score_kind == "rating" else "score"
    note = (
        "A few users from the lightest to the heaviest: what they touched beside the best items that they have not "
        f"touched, with the model's {unit}."
    )
    if "title" not in content.dataset.item_attributes.columns:
        note += " Items go by their ids: the data has no titles."
    cards = [_user_card(content, user, unit) for user in users]
    return _section("recommendations", "What it recommends", note, *cards)


def _user_card(content: ReportContent, user: SampleUser, unit: str) -> Markup:
    words = {"rating": ("Rated highest", "rating"), "time": ("Touched last", ""), "popularity": ("Touched", "")}
    touched, touched_unit = words[user.order]
    heading = tag(
        "h3",
        f"User {_clipped(content.dataset.user_ids[user.user])}",
        tag("span", _count(user.interactions, "interaction"), class_="muted"),
    )
    return tag(
        "div",
        heading,
        tag(
            "div",
            _item_list(content, touched, touched_unit, user.touched, "{:g}"),
            _item_list(content, "Recommended", unit, user.recommended, "{:.2f}" if "rating" in unit else "{:.3f}"),
            class_="beside",
        ),
        class_="card wide",
    )


def _item_list(content: ReportContent, heading: str, unit: str, scored: Scored, form: str) -> Markup:
    if not scored:
        return tag("div", tag("h4", heading), tag("p", "nothing is left", class_="note"))
    rows = [
        tag(
            "tr",
            tag("td", str(place), class_="number muted"),
            tag("td", _title(content, item), tag("span", ", ".join(content.genres[item][:3]), class_="genres")),
            tag("td", "" if value is None else form.format(value), class_="number"),
        )
        for place, (item, value) in enumerate(scored, start=1)
    ]
    head = tag("tr", tag("th", heading, colspan="2", scope="col"), tag("th", unit, scope="col", class_="number"))
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="items")


def _neighbours(content: ReportContent) -> Markup:
    cards = []
    for item, scored in sample_neighbours(content):
        near = [
            tag("li", _title(content, row), tag("span", f"{cosine:.3f}", class_="muted"))
            for row, cosine in scored
            if cosine is not None
        ]
        count = tag("span", _count(int(content.popularity[item]), "interaction"), class_="muted")
        heading = tag("h4", _title(content, item), count)
        cards.append(tag("div", heading, tag("ol", *near, class_="pairs"), class_="card"))
    note = "Items from the most popular down to the middle of the catalogue, each with its nearest by cosine."
    return _section("neighbours", "What is like what", note, tag("div", *cards, class_="cards"))


def _making(content: ReportContent) -> Markup:
    parameters = _facts("Hyper-parameters", ((name, str(value)) for name, value in content.hyperparameters.items()))
    vectors = content.embeddings
    shape = [
        ("users, columns", "{:,}, {:,}".format(*vectors.users.shape)),
        ("items, columns", "{:,}, {:,}".format(*vectors.items.shape)),
        ("of them biases", f"{vectors.bias_columns:,}"),
        ("score constant", f"{vectors.score_constant:.4g}"),
        ("a score is a", vectors.score_kind),
    ]
    libraries = _facts("Libraries", content.libraries.items())
    cards = [
        parameters,
        _facts("Index: user to items", _index_facts(content.items)),
        _facts("Index: item to items", _index_facts(content.neighbours)),
        _facts("Embeddings", shape),
        libraries,
    ]
    print_ = content.dataset.fingerprint()
    note = f"Fingerprint of the training data: {print_[:16]}…; the manifest beside this page has the whole of it."
    return _section("making", "How it was made", note, tag("div", *cards, class_="cards"))


def _facts(heading: str, facts: Iterable[tuple[str, str]]) -> Markup:
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts]
    return tag("div", tag("h4", heading), tag("dl", *rows), class_="card")


def _index_facts(index: BuiltIndex) -> list[tuple[str, str]]:
    facts = [("kind", _kind_of(index))]
    facts += [(name, f"{value:,}") for name, value in index.search_parameters.items()]
    facts += [(f"recall@{k}", f"{recall:.4f}") for k, recall in sorted(index.recalls.items())]
    return [*facts, ("measured on", _count(index.recall_queries, "query", "queries"))]


def _kind_of(index: BuiltIndex) -> str:
    return {"flat": "exact search"}.get(index.kind, index.kind)


_SECTIONS: tuple[Callable[[ReportContent], Markup], ...] = (
    _quality,
    _recommendations,
    _neighbours,
    _map_and_clusters,
    _training,
    _data,
    _making,
)


def _section(name: str, heading: str, note: str, *children: Markup) -> Markup:
    return tag("section", tag("h2", heading), tag("p", note, class_="note"), *children, id=name)


def _figure(heading: str, takeaway: str, drawing: Markup) -> Markup:
    caption = tag("figcaption", tag("strong", heading), " ", tag("span", takeaway, class_="muted"))
    image = tag("div", drawing, role="img", aria_label=f"{heading}: {takeaway}" if takeaway else heading)
    return tag("figure", caption, image)


def _title(content: ReportContent, item: int) -> Markup:
    return tag("span", _clipped(content.titles[item]), class_="title")


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST_TITLE else text[: _LONGEST_TITLE - 1].rstrip() + "…"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def _spread(figures: tuple[int, float, int]) -> str:
    least, median, most = figures
    return f"{least:,} to {most:,} interactions each, median {median:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return _count(minutes, "minute") if minutes < 120 else f"{minutes / 60:.1f} hours"
