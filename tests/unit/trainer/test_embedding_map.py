"""The map of the embeddings in the report."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from shortlist_trainer.export.report import (
    ClustersShown,
    ClusterView,
    ReportContent,
)
from shortlist_trainer.export.report.embedding_map import on_a_plane, place_labels
from shortlist_trainer.models.base import Embeddings
from tests.small_world import random_dataset
from tests.unit.trainer.pages import Page, content_of, html_of, on_one_line, page_of


def test_the_map_shows_each_item_with_its_title_and_cluster(content: ReportContent, tmp_path: Path) -> None:
    labels = np.arange(60) % 3 - 1
    views = [ClusterView("items", label, 20, [(f"Top of {label}", 41.0)]) for label in (0, 1)]
    users = ClusterView("users", 5, 30, [("Loved by five", 0.125)])
    html = html_of(dataclasses.replace(content, clusters=ClustersShown([*views, users], labels)), tmp_path)
    colour, name = re.findall(r"<circle class=\"(g\w)\"[^>]*><title>Title of i4 · ([^<]*)</title>", html)[0]
    assert name == "cluster 0"
    assert f'<h4><i class="swatch {colour}"></i>Cluster 0' in html
    assert len(re.findall(r"<circle ", html)) == 60
    text = on_one_line(Page(html).text)
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


def test_equal_vectors_have_a_map(rng: np.random.Generator, tmp_path: Path) -> None:
    same = Embeddings(np.ones((30, 4), np.float32), np.ones((300, 4), np.float32), "preference")
    page_of(content_of(random_dataset(30, 300, 4, rng), same), tmp_path)
