"""The report tells what its objects say, escapes what data says, asks nothing of the network and draws any data."""

import dataclasses
import datetime as dt
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from shortlist_trainer.data.dataset import Dataset
from shortlist_trainer.data.statistics import statistics_of
from shortlist_trainer.evaluation.protocols import EvaluationResult
from shortlist_trainer.export.folder import build_indexes, seen_items
from shortlist_trainer.export.index import BuiltIndex
from shortlist_trainer.export.report import (
    ClustersShown,
    ClusterView,
    ReportContent,
    charts,
    embedding_map,
    write_report,
)
from shortlist_trainer.export.report.embedding_map import on_a_plane, place_labels
from shortlist_trainer.export.report.samples import sample_neighbours, sample_users
from shortlist_trainer.models.base import Embeddings
from shortlist_trainer.models.history import EpochRecord, TrainingHistory
from tests.small_world import NO_EVALUATION, dataset_of, publish_embeddings, random_dataset, random_embeddings

HOSTILE = """</title></svg><script src="https://evil.example/x.js">alert('&amp;')</script><b onclick='x' a="">"""
"""A title that would leave whatever it is put into."""

EVALUATION = EvaluationResult(
    protocol="full-rank",
    split="random 80%/20%",
    training_interactions=8_001,
    test_interactions=2_003,
    cold_interactions=17,
    metrics={"ndcg@10": 0.4242, "recall@10": 0.1, "coverage@10": 0.3131, "rmse": 0.9},
    baselines={
        "popular": {"ndcg@10": 0.2121, "recall@10": 0.2, "coverage@10": 0.0202, "rmse": 1.2},
        "random": {"ndcg@10": 0.0123, "recall@10": 0.01, "coverage@10": 0.9797},
    },
)
HISTORY = TrainingHistory(
    epochs=(EpochRecord(1, 0.9, 2.0, 0.31), EpochRecord(2, 0.7, 2.0, 0.37), EpochRecord(3, 0.6, 2.0, 0.35)),
    metric_name="ndcg@10",
    best_epoch=2,
)


def content_of(dataset: Dataset, embeddings: Embeddings, **changes: Any) -> ReportContent:
    seen = seen_items(dataset.interactions.user_offsets(), dataset.interactions.items)
    items, neighbours = build_indexes(embeddings, seen, seed=0)
    content = ReportContent(
        model_name="made",
        version=7,
        created=dt.datetime(2026, 3, 9, 12, tzinfo=dt.UTC),
        hyperparameters={"embedding_size": 8, "regularization": 0.0625},
        libraries={"torch": "2.13.0+odd"},
        dataset=dataset,
        statistics=statistics_of(dataset),
        embeddings=embeddings,
        evaluation=EVALUATION,
        refit_on_all=True,
        items=items,
        neighbours=neighbours,
        history=HISTORY,
    )
    return dataclasses.replace(content, **changes)


@pytest.fixture
def content(rng: np.random.Generator) -> ReportContent:
    """Thirty users and sixty items with titles, genres and ratings."""
    return content_of(random_dataset(30, 60, 8, rng), random_embeddings(30, 60, 5, rng, biased=True))


class Page(HTMLParser):
    """A page as a browser reads it: elements with their attributes, and the text that is shown."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data if "svg" in self.open else f"{data} "

    def values(self, attribute: str) -> list[str]:
        return [str(attributes[attribute]) for _, attributes in self.elements if attribute in attributes]


def html_of(content: ReportContent, folder: Path) -> str:
    """The text of the report, which must be drawn whole."""
    write_report(folder / "report.html", content)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "could not be drawn" not in html
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b|<NA>", html)
    return html


def page_of(content: ReportContent, folder: Path) -> Page:
    page = Page(html_of(content, folder))
    assert page.open == []  # every element is closed
    return page


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_the_page_tells_what_its_objects_say(content: ReportContent, tmp_path: Path) -> None:
    uncommon = BuiltIndex(None, "ivf", {"nprobe": 37}, {10: 0.9876, 100: 0.8765}, 432)
    text = page_of(dataclasses.replace(content, items=uncommon), tmp_path).text
    data = content.statistics
    assert "made  version 7" in text
    assert f"made learned from {data.interactions:,} interactions of 30 users with 60 items in small" in text
    assert "published on 9 March 2026. It ranks held-out items with NDCG@10 0.424, 2.0 times as high as " in text
    assert "recommending the popular (0.212)." in text
    assert "trained on 8,001 interactions and judged by 2,003, of which 17 are" in text
    assert "were then trained again on all interactions" in text
    for figure in (
        "0.4242",
        "0.2121",
        "0.0123",
        "0.3131",
        "0.9876",
        "0.8765",
        "432 queries",
        "37",
        "0.0625",
        "2.13.0+odd",
    ):
        assert figure in text, figure
    assert f"{data.density:.2%}" in text
    assert f"{data.long_tail_share:.0%}" in text
    assert "share of a user's held-out items among the first 10" in text
    assert content.dataset.fingerprint()[:16] in text


def test_the_best_figure_is_bold_where_there_is_a_best(content: ReportContent, tmp_path: Path) -> None:
    html = html_of(content, tmp_path)
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)<span.*?</tr>", html)
    assert rows == ["NDCG@10", "Recall@10", "Coverage@10", "RMSE"]
    bold = dict(re.findall(r"<tr><th scope=\"row\">([^<]*)<(?:(?!</tr>).)*?<strong>([^<]*)</strong>", html))
    assert bold == {"NDCG@10": "0.4242", "Recall@10": "0.2000", "RMSE": "0.9000"}


def popular_has(ndcg: float) -> dict[str, dict[str, float]]:
    return {"popular": {"ndcg@10": ndcg}}


@pytest.mark.parametrize(
    ("metrics", "baselines", "words"),
    [
        (
            {"rmse": 0.9},
            {"item mean": {"rmse": 1.0}, "global mean": {"rmse": 1.5}},
            "predicts held-out ratings with RMSE 0.900, 10% lower than the item mean (1.000).",
        ),
        ({"ndcg@10": 0.2}, popular_has(0.2), "NDCG@10 0.200, no better than recommending the popular (0.200)."),
        ({"ndcg@10": 0.2}, popular_has(0.0), "NDCG@10 0.200, higher than recommending the popular (0.000)."),
        ({"ndcg@10": 0.21}, popular_has(0.2), "NDCG@10 0.210, 5.0% higher than recommending the popular (0.200)."),
        ({"ndcg@10": 0.2}, {}, "with NDCG@10 0.200."),
        ({"surprise": 0.2}, {"popular": {"surprise": 0.1}}, "with Surprise 0.200."),
        ({}, {}, "It was not evaluated."),
    ],
)
def test_the_summary_says_how_good_the_model_is(
    content: ReportContent,
    tmp_path: Path,
    metrics: dict[str, float],
    baselines: dict[str, dict[str, float]],
    words: str,
) -> None:
    evaluation = dataclasses.replace(EVALUATION, metrics=metrics, baselines=baselines)
    assert words in page_of(dataclasses.replace(content, evaluation=evaluation), tmp_path).text


def test_recommendations_are_the_best_unseen_items_by_the_models_own_score(
    content: ReportContent, tmp_path: Path
) -> None:
    vectors, interactions = content.embeddings, content.dataset.interactions
    assert vectors.user_bias is not None
    text = _one_line(page_of(content, tmp_path).text)
    users = sample_users(content)
    assert [user.interactions for user in users] == sorted(user.interactions for user in users)
    assert len({user.user for user in users}) == 5
    for user in users:
        scores = vectors.items @ vectors.users[user.user] + vectors.user_bias[user.user] + vectors.score_constant
        seen = interactions.items[interactions.users == user.user]
        scores[seen] = -np.inf
        expected = np.argsort(-scores)[:10]
        assert [item for item, _ in user.recommended] == expected.tolist()
        np.testing.assert_allclose([score for _, score in user.recommended], scores[expected], rtol=1e-5)  # type: ignore[arg-type]
        assert {item for item, _ in user.touched} <= set(seen.tolist())
        card = text[text.index(f"User {content.dataset.user_ids[user.user]} {len(seen)} interactions") :]
        ranked = [
            f"{place} {content.titles[item]} {', '.join(content.genres[item])} {scores[item]:.2f}"
            for place, item in enumerate(expected, start=1)
        ]
        assert card.partition("Recommended predicted rating ")[2].startswith(" ".join(ranked))


def test_what_a_user_touched_is_in_the_order_of_rating_then_time(content: ReportContent) -> None:
    pairs = [("u", "low", 1.0), ("u", "early", 5.0), ("u", "late", 5.0), ("v", "low", 2.0)]
    dataset = dataset_of(pairs)
    rows = {dataset.item_ids[item]: place for place, item in enumerate(dataset.interactions.items[:3])}
    times = np.zeros(4, np.int64)
    times[[rows["low"], rows["early"], rows["late"]]] = [300, 100, 200]
    rated = dataclasses.replace(dataset.interactions, timestamps=times)
    vectors = Embeddings(np.ones((2, 2), np.float32), np.ones((3, 2), np.float32), "preference")

    def touched(**changes: Any) -> tuple[str, list[str]]:
        changed = dataclasses.replace(dataset, interactions=dataclasses.replace(rated, **changes))
        user = next(user for user in sample_users(content_of(changed, vectors)) if user.interactions == 3)
        return user.order, [dataset.item_ids[item] for item, _ in user.touched]

    assert touched() == ("rating", ["late", "early", "low"])
    assert touched(ratings=None) == ("time", ["low", "late", "early"])
    assert touched(ratings=None, timestamps=None)[0] == "popularity"
    assert touched(ratings=None, timestamps=None)[1][0] == "low"


def test_neighbours_are_by_cosine_without_bias_columns(content: ReportContent) -> None:
    vectors = content.embeddings.items[:, :-1]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = sample_neighbours(content)
    popularity = content.dataset.interactions.item_popularity()
    assert popularity[found[0][0]] == popularity.max()
    for item, near in found:
        cosines = unit @ unit[item]
        cosines[item] = -np.inf
        assert [row for row, _ in near] == np.argsort(-cosines)[: len(near)].tolist()


def test_text_of_the_data_stays_text(content: ReportContent, tmp_path: Path) -> None:
    attributes = content.dataset.item_attributes.copy()
    attributes["title"] = HOSTILE
    attributes["genres"] = pd.Series([[HOSTILE]] * len(attributes)).to_numpy()
    cluster = ClusterView("items", 0, 60, [(HOSTILE, 1.0)])
    hostile = dataclasses.replace(
        content,
        model_name=HOSTILE,
        hyperparameters={HOSTILE: HOSTILE},
        libraries={HOSTILE: HOSTILE},
        dataset=dataclasses.replace(
            content.dataset,
            name=HOSTILE,
            item_attributes=attributes,
            user_ids=[f"{HOSTILE}{row}" for row in range(len(content.dataset.user_ids))],
        ),
        evaluation=dataclasses.replace(
            EVALUATION,
            split=HOSTILE,
            metrics={HOSTILE: 1.0},
            baselines={HOSTILE: {HOSTILE: 1.0}},
        ),
        clusters=ClustersShown([cluster], np.zeros(60, np.int64), HOSTILE),
        history=dataclasses.replace(HISTORY, metric_name=f"{HOSTILE}$x_y$"),
    )
    page = page_of(hostile, tmp_path)
    names = {name for name, _ in page.elements}
    assert not names & {"script", "b", "img", "iframe", "link", "object"}
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert page.text.count(HOSTILE) > 10
    page_of(dataclasses.replace(hostile, clusters=None), tmp_path)  # genres colour the map


def test_the_page_asks_nothing_of_the_network(content: ReportContent, tmp_path: Path) -> None:
    html = html_of(content, tmp_path)
    page = Page(html)
    assert not {name for name, _ in page.elements} & {
        "script",
        "link",
        "img",
        "image",
        "iframe",
        "object",
        "base",
        "form",
    }
    for attribute in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"):
        assert all(value.startswith("#") for value in page.values(attribute)), attribute
    assert page.values("href")
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", html))
    assert "@import" not in html
    assert "@font-face" not in html
    assert "default-src 'none'" in "".join(page.values("content"))


def test_every_id_is_there_once_and_every_reference_has_its_target(content: ReportContent, tmp_path: Path) -> None:
    html = html_of(content, tmp_path)
    ids = Page(html).values("id")
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:href=\"|url\()#([^\")]+)", html)) <= set(ids)


def test_drawings_take_their_colours_from_the_style_sheet(content: ReportContent, tmp_path: Path) -> None:
    html = html_of(content, tmp_path)
    used = set(re.findall(r"var\((--\w+)\)", html))
    assert {"--series", "--accent", "--ink", "--muted", "--grid"} <= used
    style = html[html.index("<style>") : html.index("</style>")]
    light, dark = style.split("prefers-color-scheme: dark")
    for variable in used:
        assert f"{variable}:" in light
        assert f"{variable}:" in dark
    assert not re.findall(r"#[0-9a-f]{6}\b", html[html.index("<body>") :])


def test_every_drawing_says_what_it_shows(content: ReportContent, tmp_path: Path) -> None:
    page = page_of(content, tmp_path)
    images = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    drawings = [name for name, _ in page.elements if name == "svg"]
    assert len(images) == len(drawings) == 6  # map, loss, validation, ratings, long tail, activity
    assert all(len(str(image["aria-label"])) > 5 for image in images)


def test_curves_show_every_epoch_and_mark_the_best(content: ReportContent, tmp_path: Path) -> None:
    page = page_of(content, tmp_path)
    assert "best: epoch 2, 0.37" in page.text
    assert "the parameters of epoch 2 were kept" in page.text
    assert "from 0.9 to 0.6" in page.text
    assert "3 epochs in 6 s, 2 s each" in page.text
    assert "Validation NDCG@10" in page.text


def test_many_ratings_share_a_few_bars() -> None:
    def bars(ratings: list[float]) -> int:
        return charts.rating_histogram(dict.fromkeys(ratings, 3)).count("fill: var(--series)")

    assert bars([1, 2, 3, 4, 5]) == 5
    assert bars([n / 7 for n in range(200)]) == 24


def test_the_map_shows_each_item_with_its_title_and_cluster(content: ReportContent, tmp_path: Path) -> None:
    labels = np.arange(60) % 3 - 1
    views = [ClusterView("items", label, 20, [(f"Top of {label}", 41.0)]) for label in (0, 1)]
    users = ClusterView("users", 5, 30, [("Loved by five", 0.125)])
    html = html_of(dataclasses.replace(content, clusters=ClustersShown([*views, users], labels)), tmp_path)
    colour, name = re.findall(r"<circle class=\"(g\w)\"[^>]*><title>Title of i4 · ([^<]*)</title>", html)[0]
    assert name == "cluster 0"
    assert f'<h4><i class="swatch {colour}"></i>Cluster 0' in html
    assert len(re.findall(r"<circle ", html)) == 60
    text = _one_line(Page(html).text)
    assert "cluster 0 Top of 0 20" in text  # the key of the map
    assert "Cluster 1 20 items Top of 1 41" in text
    assert "Cluster 5 30 users Loved by five 0.125" in text
    assert html.count('class="gx"') == 20


def test_labels_of_the_map_neither_overlap_nor_leave_it(rng: np.random.Generator) -> None:
    x, y = rng.uniform(0, 800, 300), rng.uniform(0, 640, 300)
    titles = ["".join(rng.choice(list("abc defg"), size)) for size in rng.integers(3, 60, 300)]
    labels = place_labels([f"{title}." for title in titles], x, y, np.full(300, 3.0))
    assert len(labels) == 26
    boxes = []
    for label in labels:
        width = 0.66 * 12 * len(label.text)
        left = label.x - {"start": 0, "middle": width / 2, "end": width}[label.anchor]
        boxes.append((left, label.y - 12, left + width, label.y + 4))
        assert 0 <= left < left + width <= 800
        assert 0 <= label.y - 12 < label.y + 4 <= 640
    for place, one in enumerate(boxes):
        for other in boxes[:place]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@pytest.mark.parametrize(("count", "method"), [(40, "principal components"), (300, "t-SNE")])
def test_a_plane_keeps_what_is_apart_apart(rng: np.random.Generator, count: int, method: str) -> None:
    vectors = rng.normal(0, 0.05, (count, 6)).astype(np.float32)
    vectors[: count // 2, 0] += 1
    plane, name = on_a_plane(vectors)
    assert name == method
    assert plane.shape == (count, 2)
    middles = plane[: count // 2].mean(axis=0), plane[count // 2 :].mean(axis=0)
    nearest = np.stack([np.linalg.norm(plane - middle, axis=1) for middle in middles]).argmin(axis=0)
    assert (nearest == (np.arange(count) >= count // 2)).mean() > 0.95


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    content = content_of(random_dataset(30, 260, 40, rng), random_embeddings(30, 260, 6, rng))
    pages = []
    for _ in range(2):
        write_report(tmp_path / "a", dataclasses.replace(content))  # without what the first has cached
        pages.append((tmp_path / "a").read_bytes())
    assert b"t-SNE" in pages[0]
    assert pages[0] == pages[1]


def test_the_page_of_a_large_catalogue_stays_small(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_map, "TSNE_FROM_ITEMS", 10_000)  # the plane's method changes no size
    content = content_of(random_dataset(300, 5_000, 90, rng), random_embeddings(300, 5_000, 8, rng))
    html = html_of(content, tmp_path)
    assert len(html) < 600_000
    assert html.count("<circle ") == embedding_map.MOST_ITEMS


def tiny() -> Dataset:
    return dataset_of([("u", "a", 5.0), ("v", "b", 5.0)])


def with_interactions(dataset: Dataset, **changes: Any) -> Dataset:
    return dataclasses.replace(dataset, interactions=dataclasses.replace(dataset.interactions, **changes))


def timed(dataset: Dataset, first: int, last: int) -> Dataset:
    return with_interactions(dataset, timestamps=np.linspace(first, last, len(dataset.interactions)).astype(np.int64))


def titled(titles: list[object]) -> Dataset:
    return dataset_of(
        [("u", f"i{row}", 1.0 + row % 5) for row in range(len(titles))] + [("v", "i0", 2.0)],
        pd.DataFrame(
            {"title": pd.Series(titles, dtype=object).to_numpy()},
            index=pd.Index([f"i{row}" for row in range(len(titles))], dtype=object),
        ),
    )


ODD_DATA = {
    "two users and two items": tiny(),
    "no ratings": with_interactions(tiny(), ratings=None),
    "nearly as many ratings as interactions": dataset_of([(f"u{n % 7}", f"i{n}", n / 3) for n in range(70)]),
    "negative and fractional ratings": dataset_of([("u", "a", -1.5), ("v", "b", 0.25), ("v", "a", 7.0)]),
    "everybody touched everything": dataset_of([(f"u{u}", f"i{i}", 3.0) for u in range(9) for i in range(9)]),
    "one user touched a thousand": dataset_of([("u", f"i{n}", 3.0) for n in range(1_000)] + [("v", "i0", 1.0)]),
    "one moment": timed(tiny(), 5, 5),
    "two seconds": timed(tiny(), 5, 6),
    "before 1970 and after 9999": timed(tiny(), -(10**10), 10**14),
    "titles that are not there": titled([None, float("nan"), pd.NA, "", "  ", 12]),
    "titles that no font has": titled(["日本の映画", "شب", "$x^2_$ \\frac", "a\x1fb", "🎬" * 50]),
    "users and items without interactions": with_interactions(
        dataset_of([("u", "a", 1.0), ("u", "b", 1.0), ("v", "c", 1.0), ("v", "d", 1.0)]),
        users=np.array([1], np.int32),
        items=np.array([2], np.int32),
        ratings=np.array([4], np.float32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_DATA)
def test_odd_data_is_drawn(rng: np.random.Generator, tmp_path: Path, name: str) -> None:
    dataset = ODD_DATA[name]
    embeddings = random_embeddings(len(dataset.user_ids), len(dataset.item_ids), 4, rng)
    page = page_of(content_of(dataset, embeddings), tmp_path)
    times = dataset.interactions.timestamps
    assert ("Along time" in page.text) == (times is not None and len(set(times.tolist())) > 1)


def test_a_title_that_is_not_there_is_the_items_id(rng: np.random.Generator) -> None:
    dataset = ODD_DATA["titles that are not there"]
    content = content_of(dataset, random_embeddings(2, 6, 4, rng))
    assert content.titles == ["i0", "i1", "i2", "i3", "i4", "12"]


def test_genres_may_be_lists_or_text_with_bars(rng: np.random.Generator) -> None:
    genres = [["Drama", "War"], "Crime|Drama", None, float("nan"), "", []]
    dataset = titled(["title"] * 6)
    dataset.item_attributes["genres"] = pd.Series(genres, dtype=object)
    content = content_of(dataset, random_embeddings(2, 6, 4, rng))
    assert content.genres == [["Drama", "War"], ["Crime", "Drama"], [], [], [], []]


ODD_MODELS: dict[str, dict[str, Any]] = {
    "no history": {"history": None},
    "no epoch": {"history": TrainingHistory(())},
    "one epoch": {"history": TrainingHistory((EpochRecord(1, 0.5, 0.0, 0.25),), "rmse", 1)},
    "no validation": {"history": TrainingHistory(tuple(EpochRecord(n, 1 / n, 90.0) for n in range(1, 80)))},
    "figures that are no numbers": {
        "history": TrainingHistory(
            (EpochRecord(1, float("nan"), 1.0, float("nan")), EpochRecord(2, float("inf"), 4_000.0, None))
        )
    },
    "no evaluation": {"evaluation": NO_EVALUATION},
    "no baselines": {"evaluation": dataclasses.replace(EVALUATION, baselines={})},
    "zeros": {"embeddings": Embeddings(np.zeros((30, 5), np.float32), np.zeros((60, 5), np.float32), "preference")},
    "one column": {"embeddings": Embeddings(np.ones((30, 1), np.float32), np.ones((60, 1), np.float32), "rating")},
    "biases alone": {
        "embeddings": Embeddings(
            np.ones((30, 1), np.float32), np.arange(60, dtype=np.float32)[:, None], "rating", bias_columns=1
        )
    },
    "nothing to set": {"hyperparameters": {}, "libraries": {}},
    "clusters without items": {"clusters": ClustersShown([ClusterView("users", 0, 0, [])], np.full(60, -1))},
    "no clusters": {"clusters": ClustersShown([], np.full(60, -1))},
    "many clusters": {"clusters": ClustersShown([ClusterView("items", n, 1, []) for n in range(60)], np.arange(60))},
}


@pytest.mark.parametrize("name", ODD_MODELS)
def test_odd_models_are_drawn(content: ReportContent, tmp_path: Path, name: str) -> None:
    page = page_of(dataclasses.replace(content, **ODD_MODELS[name]), tmp_path)
    history = ODD_MODELS[name].get("history", HISTORY)
    measured = history is not None and any(np.isfinite(record.metric or np.nan) for record in history.epochs)
    assert ("Validation" in page.text) == measured


def test_equal_vectors_have_a_map(rng: np.random.Generator, tmp_path: Path) -> None:
    same = Embeddings(np.ones((30, 4), np.float32), np.ones((300, 4), np.float32), "preference")
    page_of(content_of(random_dataset(30, 300, 4, rng), same), tmp_path)


def test_a_part_that_cannot_be_drawn_costs_nothing_else(
    content: ReportContent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("<no luck>")

    monkeypatch.setattr(charts, "long_tail", fail)
    write_report(tmp_path / "report.html", content)
    page = Page((tmp_path / "report.html").read_text())
    assert "The part “data” could not be drawn: <no luck>" in page.text
    assert {"quality", "recommendations", "neighbours", "map", "training", "indexes", "making"} == set(
        page.values("id")
    ) - {value for value in page.values("id") if "-" in value}
    assert "no luck" in caplog.text


def test_a_disk_that_fills_is_an_error(content: ReportContent, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_report(tmp_path / "missing" / "report.html", content)


def test_a_published_version_carries_its_report(rng: np.random.Generator, tmp_path: Path) -> None:
    dataset, embeddings = random_dataset(20, 50, 5, rng), random_embeddings(20, 50, 4, rng)
    folder = publish_embeddings(tmp_path, dataset, embeddings, with_report=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(entry for entry in manifest["files"] if entry["name"] == "report.html")
    page = (folder / "report.html").read_bytes()
    assert entry["sha256"] == hashlib.sha256(page).hexdigest()
    assert int(entry["size_bytes"]) == len(page)
    assert "made, version 1" in page.decode()
    assert f"published on {int(manifest['created'][8:10])} " in page.decode()
    without = publish_embeddings(tmp_path, dataset, embeddings)
    assert not (without / "report.html").exists()
