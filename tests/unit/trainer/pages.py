"""Reports as a browser reads them, of made-up models."""

import dataclasses
import datetime as dt
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from shortlist_trainer.data.dataset import Dataset
from shortlist_trainer.data.statistics import statistics_of
from shortlist_trainer.evaluation.protocols import EvaluationResult
from shortlist_trainer.export.folder import build_indexes, seen_items
from shortlist_trainer.export.report import (
    ReportContent,
    write_report,
)
from shortlist_trainer.models.base import Embeddings
from shortlist_trainer.models.history import EpochRecord, TrainingHistory

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


def on_one_line(text: str) -> str:
    """Each run of white space as one blank."""
    return re.sub(r"\s+", " ", text)
