"""A version that is loaded aside has been asked everything before it answers."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType, FrameType

import grpc
import pytest

from shortlist.v1 import recommender_pb2
from shortlist.v1.common_pb2 import AttributeValue
from shortlist.v1.recommender_pb2 import (
    BatchRecommendRequest,
    Condition,
    Diversity,
    Filter,
    GetClusterRequest,
    History,
    HistoryItem,
    RecommendRequest,
    ScoreRequest,
    SimilarItemsRequest,
    StreamRecommendRequest,
)
from shortlist.v1.recommender_pb2_grpc import RecommenderServiceStub
from shortlist_server.errors import LoadingStopped
from shortlist_server.model.folder import load_model
from shortlist_server.service import answers, wire
from shortlist_server.service.warming import warm
from tests.running import serving

ANSWERING = {
    *("answers", "outcomes", "wire", "recommend", "item_index", "faiss_index", "exact", "plans", "id_table", "ranker"),
    *("seen_items", "item_attributes", "clusters", "fold_in", "user_embeddings"),
}
"""The modules between a request and its answer that depend on the version."""


AROUND = {"answers.answer_each", "wire.serialized"}
"""What only passes answers on. Warming does without: there, what nobody foresaw refuses the version."""


@contextlib.contextmanager
def functions_run() -> Iterator[set[str]]:
    """The functions of these modules that any thread runs in the block, by module and name."""
    seen: set[CodeType] = set()
    names: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            seen.add(frame.f_code)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield names
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        for code in seen:
            path = Path(code.co_filename)
            if "shortlist_server" in path.parts and path.stem in ANSWERING:
                names.add(f"{path.stem}.{code.co_qualname}")


def ask_everything(stub: RecommenderServiceStub) -> None:
    """Requests of every kind, as callers send them."""
    history = [HistoryItem(item_id="i1"), HistoryItem(item_id="i2")]
    year = Condition(attribute="year", any_of=[AttributeValue(int_value=2000)])
    requests = [
        RecommendRequest(user_id="u0", attributes=["title", "year", "genres", "price", "classic"]),
        RecommendRequest(user_id="u1", k=100, offset=5, min_score=-100, exclude_item_ids=["i1", "i3"]),
        RecommendRequest(user_id="u2", filter=Filter(must=[year]), search_effort=2),
        RecommendRequest(user_id="u2", filter=Filter(must_not=[year]), exclude_seen=False),
        RecommendRequest(user_id="u3", diversity=Diversity(attribute="genres", max_per_value=2)),
        RecommendRequest(history=History(items=history)),
        RecommendRequest(user_id="nobody", fallback=recommender_pb2.FALLBACK_POPULAR),
        RecommendRequest(user_id="nobody", fallback=recommender_pb2.FALLBACK_CLUSTER),
        RecommendRequest(user_id="nobody"),
    ]
    for one in requests:
        with contextlib.suppress(grpc.RpcError):  # nobody is found, which is a path too
            stub.Recommend(one, timeout=20)
    stub.BatchRecommend(BatchRecommendRequest(requests=requests), timeout=20)
    list(stub.StreamRecommend(iter([StreamRecommendRequest(request=one) for one in requests]), timeout=20))
    stub.SimilarItems(SimilarItemsRequest(item_ids=["i1", "i2"], negative_item_ids=["i3"], attributes=["title"]))
    stub.Score(ScoreRequest(user_id="u1", item_ids=["i1", "i2"]))
    stub.GetCluster(GetClusterRequest(kind=recommender_pb2.CLUSTER_KIND_USER, label=0, attributes=["title"]))
    stub.GetCluster(GetClusterRequest(kind=recommender_pb2.CLUSTER_KIND_ITEM, member_id="i1"))


def test_no_request_runs_a_function_that_warming_has_not(small_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (answers, wire):  # what other tests left in their caches, warming would not run
        for cached in vars(module).values():
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()
    with functions_run() as warmed:
        warm(load_model(small_models / "1", "cpu"), lambda: None)
    # By the plain lane, all of whose threads begin with the first calls here, so that they are seen.
    monkeypatch.setattr("shortlist_server.app.SteadyPool", ThreadPoolExecutor)
    with serving(small_models, "plain") as app, grpc.insecure_channel(app.address) as channel, functions_run() as asked:
        ask_everything(RecommenderServiceStub(channel))
    assert len(asked) > 40
    assert asked - warmed == AROUND


def test_warming_ends_when_the_server_stops(small_models: Path) -> None:
    model = load_model(small_models / "1", "cpu")
    batches: list[float] = []

    def stop() -> None:
        batches.append(time.monotonic())
        if len(batches) == 3:
            raise LoadingStopped

    with pytest.raises(LoadingStopped):
        warm(model, stop)
    assert len(batches) == 3
