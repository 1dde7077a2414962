"""The item embeddings on a plane, as an SVG in which every point tells its title.

It is written by hand instead of by matplotlib, whose points cannot carry a title each.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shortlist_trainer.export.report.content import ClustersShown, ReportContent
from shortlist_trainer.export.report.markup import Markup, tag

FloatArray = npt.NDArray[np.floating]

MOST_ITEMS = 1_200
"""Points on the map: the most popular items. More would cover one another and take longer than a reader's patience."""

TSNE_FROM_ITEMS = 250
"""Maps of fewer items show principal components: so few points have no neighbourhoods to keep together."""

GROUPS = 8
"""Colours of the palette; smaller groups share a grey."""

_TSNE_STEPS = 500
_WIDTH, _HEIGHT, _MARGIN = 800, 640, 14
_LABELS = 26
_LABEL_PIXELS = 12
_LONGEST_LABEL = 26
_YEAR = re.compile(r"\s*\(\d{4}\)$")
OTHERS = "other"
"""The group of what has none, or one too small for a colour."""


@dataclass(frozen=True)
class EmbeddingMap:
    """A drawn map and what its colours mean.

    Attributes:
        drawing: the SVG element.
        method: how the plane was found.
        items: how many are on it.
        coloured_by: what a group is: "cluster" or "first genre"; None where there are no groups.
        groups: name of each group and how many of the items are in it, the j-th in colour j; the others, where there
            are any, come last, in grey.
        group_of_cluster: cluster label to the colour it has; empty where genres have them.
    """

    drawing: Markup
    method: str
    items: int
    coloured_by: str | None
    groups: list[tuple[str, int]]
    group_of_cluster: dict[int, int]


def draw_map(content: ReportContent) -> EmbeddingMap | None:
    """Draws the most popular items; None where fewer than two have an embedding.

    Like the neighbours that are served, it goes by cosine: vectors of length 1 without bias columns.
    """
    trained = np.flatnonzero(np.any(content.unit_items != 0, axis=1))
    rows = trained[np.argsort(-content.popularity[trained], kind="stable")][:MOST_ITEMS]  # the most popular first
    if len(rows) < 2:
        return None
    plane, method = on_a_plane(content.unit_items[rows])
    x, y = _fit(plane[:, 0], _WIDTH), _fit(plane[:, 1], _HEIGHT)
    coloured_by, names = _groups(content, rows)
    largest = [name for name, _ in Counter(name for name in names if name != OTHERS).most_common(GROUPS)]
    counts = Counter(name if name in largest else OTHERS for name in names)
    colour = {name: place for place, name in enumerate(largest)}
    # The square root shows counts as areas.
    popularity = np.sqrt(content.popularity[rows] / max(int(content.popularity[rows].max()), 1))
    radii = (2.2 if len(rows) > 400 else 3.5) + 5 * popularity
    points = []
    for place, row in enumerate(rows.tolist()):
        words = content.titles[row] if coloured_by is None else f"{content.titles[row]} · {names[place]}"
        points.append(
            tag(
                "circle",
                tag("title", words),
                class_=f"g{colour.get(names[place], 'x')}" if coloured_by else "g0",
                cx=f"{x[place]:.1f}",
                cy=f"{y[place]:.1f}",
                r=f"{radii[place]:.1f}",
            )
        )
    titles = [content.titles[row] for row in rows[: 40 * _LABELS].tolist()]
    labels = [
        tag("text", label.text, x=f"{label.x:.1f}", y=f"{label.y:.1f}", text_anchor=label.anchor)
        for label in place_labels(titles, x, y, radii)
    ]
    drawing = tag("svg", *points, *labels, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", class_="map", aria_hidden="true")
    shown = [(name, counts[name]) for name in largest] + ([(OTHERS, counts[OTHERS])] if counts[OTHERS] else [])
    of_cluster = {}
    if content.clusters is not None and coloured_by == "cluster":
        of_cluster = {
            label: colour[name]
            for label in set(content.clusters.item_labels.tolist())
            if (name := _cluster_name(label)) in colour
        }
    return EmbeddingMap(drawing, method, len(rows), coloured_by, shown if coloured_by else [], of_cluster)


def on_a_plane(vectors: FloatArray) -> tuple[FloatArray, str]:
    """(n, 2) coordinates and the name of the method that found them.

    t-SNE (van der Maaten & Hinton 2008, "Visualizing data using t-SNE") keeps neighbours together; it starts from the
    two principal components, which also stand alone where there are few vectors.

    Args:
        vectors: (n, d), n at least 2.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    components = np.zeros((len(vectors), 2))
    components[:, : min(2, len(lengths))] = (left * lengths)[:, :2]
    # A singular vector is one of two opposites, and which one is up to the library.
    components *= np.where(components[np.abs(components).argmax(axis=0), [0, 1]] < 0, -1, 1)
    spread = components.std(axis=0)
    if len(vectors) < TSNE_FROM_ITEMS or spread.min() < 1e-6:
        return components, "principal components"
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums over several threads come out in any order, and the map with them
        start = (components / spread * 1e-4).astype(np.float32)
        tsne = TSNE(init=start, learning_rate="auto", max_iter=_TSNE_STEPS, perplexity=30, random_state=0)
        return np.asarray(tsne.fit_transform(vectors.astype(np.float32))), "t-SNE"


def _fit(values: FloatArray, length: int) -> FloatArray:
    """The same values between the margins of an axis of ``length``."""
    span = float(np.ptp(values))
    if span == 0:
        return np.full(len(values), length / 2)
    fitted: FloatArray = _MARGIN + (values - values.min()) / span * (length - 2 * _MARGIN)
    return fitted


def _groups(content: ReportContent, rows: npt.NDArray[np.int64]) -> tuple[str | None, list[str]]:
    """What groups are, and the name of each row's group."""
    if content.clusters is not None and (content.clusters.item_labels[rows] >= 0).any():
        labels = content.clusters.item_labels[rows].tolist()
        return "cluster", [_cluster_name(label) for label in labels]
    genres = [content.genres[row] for row in rows.tolist()]
    if any(genres):
        return "first genre", [names[0] if names else OTHERS for names in genres]
    return None, [OTHERS] * len(rows)


def first_titles(clusters: ClustersShown) -> dict[str, str]:
    """The name of each item cluster on a map to its first top title."""
    items = (cluster for cluster in clusters.views if cluster.kind == "items" and cluster.top)
    return {_cluster_name(cluster.label): cluster.top[0][0] for cluster in items}


def _cluster_name(label: int) -> str:
    return f"cluster {label}" if label >= 0 else OTHERS


@dataclass(frozen=True)
class Label:
    """A title on the map, anchored at (x, y) of its base line."""

    text: str
    x: float
    y: float
    anchor: str


def place_labels(titles: list[str], x: FloatArray, y: FloatArray, radii: FloatArray) -> list[Label]:
    """Labels for up to ``_LABELS`` of the titles, the first first, each where it covers no other label.

    Args:
        titles: of the first points.
        x: (n,) of every point.
        y: (n,) likewise.
        radii: (n,) likewise.
    """
    placed: list[tuple[float, float, float, float]] = []  # left, top, right, bottom
    labels: list[Label] = []
    for place, title in enumerate(titles):
        text = _YEAR.sub("", title) or title  # the year is worth its room in a list, not on a map
        text = text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1].rstrip() + "…"
        width, gap = _width(text), radii[place] + 3
        sides = (("start", gap, 4, 0.0), ("end", -gap, 4, 1.0), ("middle", 0, -gap, 0.5), ("middle", 0, gap + 9, 0.5))
        for anchor, dx, dy, before in sides:
            at_x, at_y = float(x[place] + dx), float(y[place] + dy)
            left = at_x - before * width
            box = (left, at_y - _LABEL_PIXELS, left + width, at_y + 4)
            inside = box[0] >= 2 and box[1] >= 2 and box[2] <= _WIDTH - 2 and box[3] <= _HEIGHT - 2
            if inside and not any(_overlap(box, other) for other in placed):
                placed.append((box[0] - 14, box[1] - 9, box[2] + 14, box[3] + 9))  # room around it
                labels.append(Label(text, at_x, at_y, anchor))
                break
        if len(labels) == _LABELS:
            break
    return labels


def _width(text: str) -> float:
    """Pixels of a text, rather too many than too few."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return _LABEL_PIXELS * (0.66 * (len(text) - wide) + wide)


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
