"""What a real server refuses, and how a real client is told: limits, unknown things, full queues, missing models."""

import time
from pathlib import Path
from typing import cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from shortlist.v1 import common_pb2, recommender_pb2, recommender_pb2_grpc
from shortlist_client import (
    Client,
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    ItemNotFound,
    ModelNotFound,
    ModelState,
    Unavailable,
    UserNotFound,
)
from shortlist_server.app import ServerApp
from shortlist_server.config import ServerConfig
from shortlist_server.model.folder import LoadedModel
from shortlist_server.model.store import ModelStore
from shortlist_server.retrieval.item_index import ItemIndex
from tests.running import serving

RecommendRequest = recommender_pb2.RecommendRequest
SimilarItemsRequest = recommender_pb2.SimilarItemsRequest
ScoreRequest = recommender_pb2.ScoreRequest
GetClusterRequest = recommender_pb2.GetClusterRequest
ListClustersRequest = recommender_pb2.ListClustersRequest
USERS = recommender_pb2.CLUSTER_KIND_USER
ITEMS = recommender_pb2.CLUSTER_KIND_ITEM
AttributeValue = common_pb2.AttributeValue
Condition = recommender_pb2.Condition
Diversity = recommender_pb2.Diversity
History = recommender_pb2.History
HistoryItem = recommender_pb2.HistoryItem
LONG = "x" * 1_000_000


def wanting(*conditions: Condition) -> RecommendRequest:
    """A request whose items must meet conditions."""
    return RecommendRequest(user_id="u0", filter=recommender_pb2.Filter(must=conditions))


HOSTILE = [
    (RecommendRequest(user_id="u0", k=0), "k"),
    (RecommendRequest(user_id="u0", k=-1), "k"),
    (RecommendRequest(user_id="u0", k=1_001), "k"),
    (RecommendRequest(user_id="u0", k=1_000_000_000), "k"),
    (RecommendRequest(user_id=""), "user_id"),
    (RecommendRequest(), "user_id"),
    (RecommendRequest(user_id="u0", history=recommender_pb2.History()), "user_id"),
    (RecommendRequest(user_id=LONG), "user_id"),
    (RecommendRequest(user_id="é" * 257), "user_id"),
    (RecommendRequest(user_id="u0", exclude_item_ids=["i1", ""]), "exclude_item_ids[1]"),
    (RecommendRequest(user_id="u0", exclude_item_ids=["i1"] * 10_001), "exclude_item_ids"),
    (RecommendRequest(user_id="u0", attributes=["title", "colour"]), "attributes[1]"),
    (RecommendRequest(user_id="u0", attributes=["title"] * 33), "attributes"),
    (RecommendRequest(user_id="u0", fallback=99), "fallback"),  # type: ignore[arg-type]  # no such value
    (RecommendRequest(user_id="u0", offset=-1), "offset"),
    (RecommendRequest(user_id="u0", search_effort=0.5), "search_effort"),
    (RecommendRequest(user_id="u0", search_effort=17), "search_effort"),
    (RecommendRequest(user_id="u0", min_score=float("nan")), "min_score"),
    (RecommendRequest(user_id="u0", diversity=Diversity(attribute="colour", max_per_value=1)), "diversity.attribute"),
    (RecommendRequest(user_id="u0", diversity=Diversity(attribute="genres")), "diversity.max_per_value"),
    (RecommendRequest(history=History()), "history.items"),
    (RecommendRequest(history=History(items=[HistoryItem(item_id="i1"), HistoryItem()])), "history.items[1].item_id"),
    (
        RecommendRequest(history=History(items=[HistoryItem(item_id="i1", weight=1), HistoryItem(item_id="i2")])),
        "history.items[1].weight",
    ),
    *(
        (RecommendRequest(history=History(items=[HistoryItem(item_id="i1", weight=weight)])), "history.items[0].weight")
        for weight in (float("inf"), float("nan"), 1_000_001, -1e30)
    ),
    (RecommendRequest(history=History(items=[HistoryItem(item_id="i1")]), rerank=True), "rerank"),
    (RecommendRequest(user_id="u0", offset=491, rerank=True), "rerank"),
    (wanting(Condition(attribute="colour", any_of=[AttributeValue(string_value="red")])), "filter.must[0].attribute"),
    (wanting(Condition(attribute="genres")), "filter.must[0].any_of"),
    (wanting(Condition(attribute="year", any_of=[AttributeValue(string_value="new")])), "filter.must[0].any_of[0]"),
    (wanting(Condition(attribute="genres", any_of=[AttributeValue()])), "filter.must[0].any_of[0]"),
    (wanting(*[Condition(attribute="genres")] * 17), "filter.must"),
    (SimilarItemsRequest(item_ids=["i1"], search_effort=99), "search_effort"),
    (RecommendRequest(user_id="u0", offset=995, k=10), "offset"),
    (RecommendRequest(user_id="u0", model=common_pb2.ModelSelector(label="é" * 5_000)), "model.label"),
    (RecommendRequest(user_id="u0", model=common_pb2.ModelSelector(label="")), "model.label"),
    (SimilarItemsRequest(), "item_ids"),
    (SimilarItemsRequest(item_ids=["i1"] * 101), "item_ids"),
    (SimilarItemsRequest(item_ids=["i1", ""]), "item_ids[1]"),
    (SimilarItemsRequest(item_ids=["i1"], negative_item_ids=[LONG]), "negative_item_ids[0]"),
    (SimilarItemsRequest(item_ids=["i1"], k=0), "k"),
    (ScoreRequest(item_ids=["i1"]), "user_id"),
    (ScoreRequest(user_id="u0"), "item_ids"),
    (ScoreRequest(user_id="u0", item_ids=["i1", ""]), "item_ids[1]"),
    (GetClusterRequest(label=0), "kind"),
    (GetClusterRequest(kind=99, label=0), "kind"),  # type: ignore[arg-type]  # no such value
    (GetClusterRequest(kind=USERS), "label"),
    (GetClusterRequest(kind=USERS, label=-1), "label"),
    (GetClusterRequest(kind=ITEMS, member_id=""), "member_id"),
    (GetClusterRequest(kind=USERS, member_id=LONG), "member_id"),
    (GetClusterRequest(kind=USERS, label=0, k=0), "k"),
    (GetClusterRequest(kind=USERS, label=0, k=1_001), "k"),
    (GetClusterRequest(kind=USERS, label=0, attributes=["colour"]), "attributes[0]"),
    (GetClusterRequest(kind=USERS, label=0, model=common_pb2.ModelSelector(label="")), "model.label"),
    (ListClustersRequest(), "kind"),
    (ListClustersRequest(kind=USERS, k=-1), "k"),
    (ListClustersRequest(kind=ITEMS, k=1_001), "k"),
    (ListClustersRequest(kind=ITEMS, attributes=["colour"]), "attributes[0]"),
    (ListClustersRequest(kind=ITEMS, model=common_pb2.ModelSelector(label="")), "model.label"),
]


@pytest.mark.parametrize(("request_message", "field"), HOSTILE)
def test_a_field_outside_its_limits_is_named_and_the_next_request_is_answered(
    stub: recommender_pb2_grpc.RecommenderServiceStub,
    request_message: RecommendRequest | SimilarItemsRequest | ScoreRequest | GetClusterRequest | ListClustersRequest,
    field: str,
) -> None:
    method = {
        RecommendRequest: stub.Recommend,
        SimilarItemsRequest: stub.SimilarItems,
        ScoreRequest: stub.Score,
        GetClusterRequest: stub.GetCluster,
        ListClustersRequest: stub.ListClusters,
    }
    with pytest.raises(grpc.RpcError) as caught:
        method[type(request_message)](request_message, timeout=5)  # type: ignore[operator]  # the method of the message
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(cast(grpc.Call, caught.value))
    details = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(details)
    assert [violation.field for violation in details.field_violations] == [field]
    assert len(caught.value.details() or "") < 300
    assert len(stub.Recommend(RecommendRequest(user_id="u0"), timeout=5).items) == 10


def test_a_model_without_a_network_cannot_rerank(stub: recommender_pb2_grpc.RecommenderServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Recommend(RecommendRequest(user_id="u0", rerank=True), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "no network to re-rank with" in (caught.value.details() or "")


def test_unknown_items_and_models_are_not_found(client: Client) -> None:
    with pytest.raises(ItemNotFound) as item:
        client.similar_items(["i1", "i999"])
    assert item.value.resource_name == "i999"
    with pytest.raises(ItemNotFound):
        client.score("u0", ["i1", "i999"])
    with pytest.raises(UserNotFound):
        client.score("nobody", ["i1"])
    for call in (client.recommend, client.similar_items):
        with pytest.raises(ModelNotFound) as model:
            call("i1", model_version=7)
        assert model.value.resource_name == "7"
        with pytest.raises(ModelNotFound, match="label 'canary'"):
            call("i1", model_label="canary")
    with pytest.raises(ModelNotFound):
        client.get_model(model_version=7)


def test_the_client_tells_a_wrong_argument_by_its_field(client: Client) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.recommend("u0", k=2_000)
    assert caught.value.violations == {"k": "must lie between 1 and 1,000, not be 2,000"}
    with pytest.raises(ValueError, match="not both"):
        client.recommend("u0", model_version=1, model_label="stable")
    with pytest.raises(ValueError, match="friends"):
        client.recommend("u0", fallback="friends")


def test_without_a_model_the_server_says_when_to_come_back_and_serves_it_once_it_is_there(
    tmp_path: Path, small_models: Path
) -> None:
    models_dir = tmp_path / "models"
    with serving(models_dir, look_seconds=0.05) as app, Client(app.address, timeout_seconds=5) as client:
        with grpc.insecure_channel(app.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(Unavailable, match="no model is ready yet") as caught:
                client.recommend("u0")
            assert caught.value.retry_after_seconds == 2
            assert client.list_models() == []
            with pytest.raises(Unavailable):
                client.get_model()

            (models_dir).mkdir()
            (models_dir / "1").symlink_to(small_models / "1")
            deadline = time.monotonic() + 30
            while health.Check(health_pb2.HealthCheckRequest()).status != health_pb2.HealthCheckResponse.SERVING:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert len(client.recommend("u0").items) == 10


def test_the_client_tries_again_until_a_model_is_ready(
    tmp_path: Path, small_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []
    default = ModelStore.default

    def publish_at_the_first_attempt(self: ModelStore) -> LoadedModel:
        attempts.append(1)
        if len(attempts) == 1:
            (tmp_path / "1").symlink_to(small_models / "1")
        return default(self)

    monkeypatch.setattr(ModelStore, "default", publish_at_the_first_attempt)
    with serving(tmp_path, look_seconds=0.01) as app, Client(app.address, timeout_seconds=20) as client:
        assert len(client.recommend("u0").items) == 10
    assert len(attempts) > 1


def test_a_server_of_bad_models_only_serves_none_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    with serving(tmp_path) as app, Client(app.address) as client:
        (model,) = client.list_models()
        assert (model.version, model.state, model.state_reason) == (3, ModelState.FAILED, "manifest.json is missing")
        assert not model.default


def test_a_string_where_several_are_taken_is_refused(client: Client) -> None:
    for call in (
        lambda: client.recommend("u0", exclude_item_ids="i12"),
        lambda: client.recommend("u0", attributes="title"),
        lambda: client.score("u0", "i12"),
        lambda: client.list_clusters("item", attributes="title"),
        lambda: client.get_cluster("item", label=0, attributes="title"),
        lambda: client.similar_items("i1", negative_item_ids="i12"),
    ):
        with pytest.raises(TypeError, match="takes several strings"):
            call()


def test_an_unforeseen_error_tells_the_caller_a_request_id_and_nothing_else(
    small_models: Path, lane: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("the secret inside")

    with serving(small_models, lane) as app, Client(app.address) as client:
        monkeypatch.setattr(ItemIndex, "search", explode)
        with pytest.raises(InternalError) as caught:
            client.recommend("u0")
        assert "secret" not in str(caught.value)
        assert caught.value.request_id in str(caught.value)
        assert caught.value.request_id in caplog.text
        assert "the secret inside" in caplog.text
        with grpc.insecure_channel(app.address) as channel, pytest.raises(grpc.RpcError) as raw:
            recommender_pb2_grpc.RecommenderServiceStub(channel).Recommend(
                RecommendRequest(user_id="u0"), metadata=(("x-request-id", "mine-42"),)
            )
        assert "mine-42" in (raw.value.details() or "")
        with grpc.insecure_channel(app.address) as channel, pytest.raises(grpc.RpcError) as long:
            recommender_pb2_grpc.RecommenderServiceStub(channel).Recommend(
                RecommendRequest(user_id="u0"), metadata=(("x-request-id", "x" * 129),)
            )
        assert "xxx" not in (long.value.details() or "")
        monkeypatch.undo()
        assert len(client.recommend("u0").items) == 10


def test_the_client_says_that_there_is_no_server() -> None:
    with Client("127.0.0.1:1", timeout_seconds=1) as client, pytest.raises((Unavailable, DeadlineExceeded)):
        client.recommend("u0")


def test_a_second_server_cannot_take_the_same_port(small_server: str, small_models: Path) -> None:
    with pytest.raises(OSError, match="it is in use"):
        ServerApp(ServerConfig(models_dir=small_models, port=int(small_server.rpartition(":")[2])))
