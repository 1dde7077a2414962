"""Rates of callers and sizes of what they send, on both lanes; and what no error tells them."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from shortlist.v1 import recommender_pb2
from shortlist_client import Client, ResourceExhausted, ShortlistError
from shortlist_client import recommend_request as request
from shortlist_server.access.config import AccessConfig
from shortlist_server.access.gate import ADMIN_METHODS
from shortlist_server.model.store import ModelStore
from shortlist_server.service import health
from shortlist_server.service.model_service import ModelService
from tests.callers import (
    ASKED,
    CODE,
    METHODS,
    RECOMMEND,
    RECOMMENDER,
    REFLECTION,
    TokensFile,
    call,
    code,
    raw,
    retry_seconds,
)
from tests.running import serving


@pytest.fixture
def tokens(tmp_path: Path) -> TokensFile:
    return TokensFile(tmp_path / "tokens")


def test_a_caller_who_asks_too_often_is_told_when_to_come_back_and_others_are_not_held_up(
    small_models: Path, lane: str, tokens: TokensFile
) -> None:
    slow, fast = tokens.add("slow", "read", rate=3), tokens.add("fast", "read")
    with (
        serving(small_models, lane, access=AccessConfig(tokens=tokens.path, rate_limit=1_000)) as app,
        grpc.insecure_channel(app.address) as channel,
    ):
        started = time.monotonic()
        errors = [call(channel, RECOMMEND, slow, ASKED) for _ in range(20)]
        took = time.monotonic() - started
        refused = [error for error in errors if error is not None]
        assert len(errors) - len(refused) <= 3 + 3 * took
        assert {error.code() for error in refused} == {CODE.RESOURCE_EXHAUSTED}
        wait = retry_seconds(refused[-1])
        assert 0 < wait <= 1 / 3 + 0.001
        assert all(code(channel, RECOMMEND, fast, ASKED) is CODE.OK for _ in range(20))
        time.sleep(wait + 0.05)
        assert code(channel, RECOMMEND, slow, ASKED) is CODE.OK


def test_a_batch_counts_its_entries_and_a_stream_its_messages(small_models: Path, lane: str) -> None:
    with serving(small_models, lane, access=AccessConfig(rate_limit=10)) as app, Client(app.address) as client:
        assert len(client.batch_recommend(["u0"] * 30)) == 30  # more than a second's worth, as the bucket is full
        with pytest.raises(ResourceExhausted) as caught:
            client.recommend("u0")
        assert caught.value.retry_after_seconds is not None
        assert 0.5 < caught.value.retry_after_seconds <= 2.2

    with serving(small_models, lane, access=AccessConfig(rate_limit=10)) as app, Client(app.address) as client:
        started = time.monotonic()
        answers = dict(client.stream_recommend((str(number), request("u0")) for number in range(40)))
        took = time.monotonic() - started
        assert len(answers) == 40
        refused = [answer for answer in answers.values() if isinstance(answer, ShortlistError)]
        assert 40 - len(refused) <= 9 + 10 * took  # one for opening it
        assert {type(answer) for answer in refused} == {ResourceExhausted}


def test_a_server_without_rates_or_tokens_limits_nobody(client: Client) -> None:
    for _ in range(50):
        client.recommend("u0")


def test_metadata_beyond_its_limit_is_refused_and_a_long_token_and_trace_fit(small_server: str) -> None:
    with grpc.insecure_channel(small_server) as channel:
        for size, expected in ((15_000, CODE.OK), (20_000, CODE.RESOURCE_EXHAUSTED)):
            for _ in range(6):  # never by chance
                assert code(channel, RECOMMEND, (("trace", "x" * size),), ASKED) is expected


def test_a_message_beyond_16_mib_is_refused_and_one_below_is_read(small_server: str) -> None:
    with grpc.insecure_channel(small_server) as channel:
        for path in (RECOMMEND, f"/{RECOMMENDER.full_name}/BatchRecommend"):
            assert code(channel, path, asked=bytes(17 << 20)) is CODE.RESOURCE_EXHAUSTED
            assert code(channel, path, asked=bytes(15 << 20)) is not CODE.RESOURCE_EXHAUSTED


def test_a_fifth_reflection_is_refused_as_each_holds_a_thread(small_server: str) -> None:
    ended = threading.Event()

    def wait() -> Iterator[bytes]:
        yield b"\x3a\x00"  # list_services
        ended.wait(20)

    with grpc.insecure_channel(small_server) as channel:
        streams: list[Any] = [raw(channel, REFLECTION, wait()) for _ in range(4)]
        for stream in streams:
            assert b"shortlist.v1.RecommenderService" in next(stream)
        assert code(channel, REFLECTION, asked=b"\x3a\x00") is CODE.RESOURCE_EXHAUSTED
        ended.set()
        for stream in streams:
            list(stream)
        deadline = time.monotonic() + 5
        while code(channel, REFLECTION, asked=b"\x3a\x00") is not CODE.OK:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("path", METHODS)
def test_no_method_tells_what_went_wrong_inside(
    small_models: Path, lane: str, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("the secret inside /srv/models")

    messages: dict[str, Any] = {
        "BatchRecommend": recommender_pb2.BatchRecommendRequest(requests=[request("u0")]),
        "StreamRecommend": recommender_pb2.StreamRecommendRequest(request=request("u0")),
        "SimilarItems": recommender_pb2.SimilarItemsRequest(item_ids=["i1"]),
        "Score": recommender_pb2.ScoreRequest(user_id="u0", item_ids=["i1"]),
        "GetCluster": recommender_pb2.GetClusterRequest(kind=recommender_pb2.CLUSTER_KIND_USER, label=0),
        "ListClusters": recommender_pb2.ListClustersRequest(kind=recommender_pb2.CLUSTER_KIND_USER),
        "Recommend": request("u0"),
    }
    name = path.rpartition("/")[2]
    asked = messages[name].SerializeToString() if name in messages else b""
    with monkeypatch.context() as patch:
        if path in ADMIN_METHODS:
            explode.__name__ = name
            patch.setattr(ModelService, name, explode)
        with serving(small_models, lane, admin=True) as app, grpc.insecure_channel(app.address) as channel:
            for method in [name for name in vars(ModelStore) if not name.startswith("_")]:
                patch.setattr(ModelStore, method, explode)
            answers = raw(channel, path, iter([asked]), [("x-request-id", "mine-42")])
            told = ""
            with contextlib.suppress(grpc.RpcError):  # or an entry of the answer says it
                told = b"".join(answers).decode(errors="replace")
        told += f"{answers.code()} {answers.details()} {answers.trailing_metadata()}"
    assert "internal error; the server's log tells more under request id" in told
    for inside in ("secret", "srv", "RuntimeError", "Traceback", ".py"):
        assert inside not in told
    assert "the secret inside" in caplog.text


def test_no_label_or_version_of_a_request_reaches_the_file_system(
    small_models: Path, lane: str, client: Client
) -> None:
    for label in ("../1", "/etc/passwd", "1/../1", "..", ".", "\0", "a/b", "%2e%2e"):
        with pytest.raises(ShortlistError) as caught:
            client.get_model(model_label=label)
        assert caught.value.code is CODE.INVALID_ARGUMENT
        assert str(small_models) not in str(caught.value)
    for version in (0, 2**63, 2**64 - 1):
        with pytest.raises(ShortlistError) as caught:
            client.get_model(model_version=version)
        assert caught.value.code is CODE.NOT_FOUND
        assert str(small_models) not in str(caught.value)


@pytest.mark.parametrize(("access", "calls"), [(AccessConfig(), 1_024), (AccessConfig(calls_per_connection=3), 3)])
def test_a_connection_may_have_so_many_calls_open_and_the_next_waits(
    small_models: Path, monkeypatch: pytest.MonkeyPatch, access: AccessConfig, calls: int
) -> None:
    for limit in ("_WATCHERS", "_WATCHERS_OF_ADDRESS"):  # of calls that stay open as long as one likes
        monkeypatch.setattr(health, limit, 2_000)
    with serving(small_models, access=access) as app, grpc.insecure_channel(app.address) as channel:
        # Calls that are made before there is a connection are sent in any order, and the last may come first.
        grpc.channel_ready_future(channel).result(10)
        watching = [raw(channel, "/grpc.health.v1.Health/Watch", iter([b""])) for _ in range(calls + 1)]
        try:
            for watch in watching[:calls]:
                next(watch)
            answer: list[bytes] = []
            waiting = threading.Thread(target=lambda: answer.append(next(watching[calls])))
            waiting.start()
            waiting.join(0.5)
            assert not answer
            watching[0].cancel()
            waiting.join(10)
            assert answer
        finally:
            for watch in watching:
                watch.cancel()


def test_pings_without_end_close_the_connection(small_server: str) -> None:
    host, _, port = small_server.rpartition(":")
    settings, ping = b"\0\0\0\4\0\0\0\0\0", b"\0\0\x08\6\0\0\0\0\0pingping"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + ping * 10)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(4_096):
                received += more
    assert b"too_many_pings" in received
