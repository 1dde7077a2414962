"""What the model learned from, how it learned, what it recommends, and how it was made."""

import math

import numpy as np

from shortlist_trainer.data.statistics import HEAD_SHARE
from shortlist_trainer.export.report import charts
from shortlist_trainer.export.report.blocks import (
    clipped,
    count,
    duration,
    facts,
    figure,
    period_of,
    section,
    short,
    spread,
    tile,
)
from shortlist_trainer.export.report.content import ReportContent
from shortlist_trainer.export.report.embedding_map import OTHERS, EmbeddingMap, draw_map, first_titles
from shortlist_trainer.export.report.markup import Markup, join, tag
from shortlist_trainer.export.report.metrics import display_name
from shortlist_trainer.export.report.samples import SampleUser, Scored, sample_neighbours, sample_users

_NOTHING = Markup("")
_TOP_TITLES = 8  # of a cluster
_MOST_CLUSTERS = 24  # of users, and as many of items


def training(content: ReportContent) -> Markup:
    """Loss and validation metric after every epoch; nothing where nobody kept them."""
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
        figures.append(figure("Training loss", ends, drawing))
    if measured:
        name = display_name(history.metric_name or "metric")
        best = "" if history.best_epoch is None else f"the parameters of epoch {history.best_epoch} were kept"
        numbers = [value for _, value in measured]
        drawing = charts.curve("validation", [record for record, _ in measured], numbers, name, history.best_epoch)
        figures.append(figure(f"Validation {name}", best, drawing))
    seconds = sum(record.seconds for record in epochs)
    note = f"{count(len(epochs), 'epoch')} in {duration(seconds)}, {duration(seconds / len(epochs))} each."
    return section("training", "How it learned", note, tag("div", *figures, class_="charts"))


def data(content: ReportContent) -> Markup:
    """Sizes, and drawings of ratings, long tail, activity and time."""
    data, dataset = content.statistics, content.dataset
    interactions = dataset.interactions
    period = period_of(content)
    facts = [
        ("Users", f"{data.users:,}", spread(data.interactions_per_user)),
        ("Items", f"{data.items:,}", spread(data.interactions_per_item)),
        ("Interactions", f"{data.interactions:,}", f"{dataset.duplicates_merged:,} duplicates merged"),
        ("Density", f"{data.density:.2%}", "of all pairs of a user and an item"),
        ("Long tail", f"{data.long_tail_share:.0%}", f"with the least popular {1 - HEAD_SHARE:.0%} of the items"),
    ]
    figures = []
    if data.rating_counts:
        count = sum(data.rating_counts.values())
        mean = sum(rating * number for rating, number in data.rating_counts.items()) / count
        figures.append(figure("Ratings", f"mean {mean:.2f}", charts.rating_histogram(data.rating_counts)))
    figures.append(figure("The long tail", "how unevenly items are touched", charts.long_tail(content.popularity)))
    figures.append(
        figure(
            "Activity", "how much there is to learn from a user", charts.activity(np.diff(interactions.user_offsets()))
        )
    )
    if interactions.timestamps is not None and data.first_and_last is not None and np.ptp(interactions.timestamps) > 0:
        figures.append(figure("Along time", period or "", charts.over_time(interactions.timestamps)))
    note = f"{dataset.name}, read as {dataset.format}" + (
        f"; {dataset.bad_rows_skipped:,} malformed rows were left out." if dataset.bad_rows_skipped else "."
    )
    tiles = tag("div", *(tile(*fact) for fact in facts), class_="tiles small")
    return section("data", "What it learned from", note, tiles, tag("div", *figures, class_="charts"))


def map_and_clusters(content: ReportContent) -> Markup:
    """The map of the items and the clusters, in the same colours."""
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
    first = {} if content.clusters is None else first_titles(content.clusters)
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
    return section("map", "The map of the items", note, figure_of_map)


def _key(name: str, example: str | None, count: int, colour: str) -> Markup:
    swatch, number = tag("i", class_=f"swatch {colour}"), tag("span", f"{count:,}", class_="muted")
    words = tag("span", clipped(name), *([] if example is None else [tag("small", clipped(example))]))
    return tag("li", swatch, words, number, class_=f"key {colour}", tabindex="0")


def _clusters(content: ReportContent, colours: dict[int, int]) -> Markup:
    if content.clusters is None or not content.clusters.views:
        return _NOTHING
    parts = []
    for kind, words in (("items", "Clusters of items"), ("users", "Clusters of users")):
        clusters = [cluster for cluster in content.clusters.views if cluster.kind == kind]
        cards = []
        for cluster in clusters[:_MOST_CLUSTERS]:
            colour = colours.get(cluster.label) if kind == "items" else None
            swatch = _NOTHING if colour is None else tag("i", class_=f"swatch g{colour}")
            top = [
                tag("li", tag("span", clipped(title)), tag("span", short(value), class_="muted"))
                for title, value in cluster.top[:_TOP_TITLES]
            ]
            size = tag("span", count(cluster.size, kind[:-1]), class_="muted")
            heading = tag("h4", swatch, f"Cluster {cluster.label}", size)
            cards.append(tag("div", heading, tag("ol", *top, class_="pairs"), class_="card"))
        if cards:
            parts += [tag("h3", words), tag("div", *cards, class_="cards")]
        if len(clusters) > len(cards):
            parts.append(tag("p", f"and {len(clusters) - len(cards):,} more", class_="note"))
    note = f"Top items of each cluster, with their {content.clusters.figure_name}."
    return section("clusters", "The clusters", note, *parts)


def recommendations(content: ReportContent) -> Markup:
    """A few users: what they touched beside what they are recommended."""
    users = sample_users(content)
    unit = "predicted rating" if content.embeddings.score_kind == "rating" else "score"
    note = (
        "A few users from the lightest to the heaviest: what they touched beside the best items that they have not "
        f"touched, with the model's {unit}."
    )
    if "title" not in content.dataset.item_attributes.columns:
        note += " Items go by their ids: the data has no titles."
    cards = [_user_card(content, user, unit) for user in users]
    return section("recommendations", "What it recommends", note, *cards)


def _user_card(content: ReportContent, user: SampleUser, unit: str) -> Markup:
    words = {"rating": ("Rated highest", "rating"), "time": ("Touched last", ""), "popularity": ("Touched", "")}
    touched, touched_unit = words[user.order]
    heading = tag(
        "h3",
        f"User {clipped(content.dataset.user_ids[user.user])}",
        tag("span", count(user.interactions, "interaction"), class_="muted"),
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


def neighbours(content: ReportContent) -> Markup:
    """A few items, each with what is like it."""
    cards = []
    for item, scored in sample_neighbours(content):
        near = [
            tag("li", _title(content, row), tag("span", f"{cosine:.3f}", class_="muted"))
            for row, cosine in scored
            if cosine is not None
        ]
        interactions = tag("span", count(int(content.popularity[item]), "interaction"), class_="muted")
        heading = tag("h4", _title(content, item), interactions)
        cards.append(tag("div", heading, tag("ol", *near, class_="pairs"), class_="card"))
    note = "Items from the most popular down to the middle of the catalogue, each with its nearest by cosine."
    return section("neighbours", "What is like what", note, tag("div", *cards, class_="cards"))


def making(content: ReportContent) -> Markup:
    """Hyper-parameters, shapes and libraries."""
    parameters = facts("Hyper-parameters", ((name, str(value)) for name, value in content.hyperparameters.items()))
    vectors = content.embeddings
    shape = [
        ("users, columns", "{:,}, {:,}".format(*vectors.users.shape)),
        ("items, columns", "{:,}, {:,}".format(*vectors.items.shape)),
        ("of them biases", f"{vectors.bias_columns:,}"),
        ("score constant", f"{vectors.score_constant:.4g}"),
        ("a score is a", vectors.score_kind),
    ]
    libraries = facts("Libraries", content.libraries.items())
    cards = [
        parameters,
        facts("Embeddings", shape),
        libraries,
    ]
    print_ = content.dataset.fingerprint()
    note = f"Fingerprint of the training data: {print_[:16]}…; the manifest beside this page has the whole of it."
    return section("making", "How it was made", note, tag("div", *cards, class_="cards"))


def _title(content: ReportContent, item: int) -> Markup:
    return tag("span", clipped(content.titles[item]), class_="title")
