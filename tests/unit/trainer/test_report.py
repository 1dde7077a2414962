"""The report tells what its objects say, escapes what data says, asks nothing of the network and draws any data."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from shortlist_trainer.export.index import BuiltIndex
from shortlist_trainer.export.report import (
    ClustersShown,
    ClusterView,
    ReportContent,
    charts,
    embedding_map,
    write_report,
)
from shortlist_trainer.export.report.samples import sample_neighbours, sample_users
from shortlist_trainer.models.base import Embeddings
from tests.small_world import dataset_of, publish_embeddings, random_dataset, random_embeddings
from tests.unit.trainer.pages import EVALUATION, HISTORY, HOSTILE, Page, content_of, html_of, on_one_line, page_of


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
    text = on_one_line(page_of(content, tmp_path).text)
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
