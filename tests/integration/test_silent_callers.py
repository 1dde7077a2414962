"""Callers who begin calls and say nothing, or take no answers, keep nobody else waiting."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from shortlist.v1 import model_pb2_grpc, recommender_pb2_grpc
from shortlist.v1.model_pb2 import ListModelsRequest
from shortlist.v1.recommender_pb2 import RecommendRequest
from shortlist_client import Client
from shortlist_server.app import MODELS
from tests.callers import METHODS
from tests.reliability.noise import asked, begun, opened, opened_without_window, watched
from tests.running import HeldSearch, serving
from tests.scraping import patiently
from tests.versions import answering, publish_one, served


def test_callers_who_send_nothing_do_not_keep_others_from_being_refused(
    small_models: Path, slow_search: HeldSearch
) -> None:
    with serving(small_models, "fast", working=1, waiting=1) as app, grpc.insecure_channel(app.address) as channel:
        host, _, port = app.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as silent:
            silent.sendall(opened() + b"".join(begun(number) for number in range(1, 1_201, 2)))
            stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
            answered = stub.Recommend.future(RecommendRequest(user_id="u0"), timeout=30)
            assert slow_search.begun.wait(10)
            time.sleep(1.5)
            calls = [stub.Recommend.future(RecommendRequest(user_id="u1"), timeout=15) for _ in range(20)]
            patiently(lambda: sum(call.done() for call in calls) == 19)  # one waits, whichever came first
            slow_search.let_go()
            assert answered.code() is grpc.StatusCode.OK
            codes = Counter(call.code() for call in calls)
            assert codes == {grpc.StatusCode.OK: 1, grpc.StatusCode.RESOURCE_EXHAUSTED: 19}


def test_who_sends_nothing_is_hung_up_on(small_models: Path, lane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shortlist_server.service.silence.SILENT_SECONDS", 0.5)
    with serving(small_models, lane, working=1, waiting=1) as app, grpc.insecure_channel(app.address) as channel:
        host, _, port = app.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as silent:
            # Beyond the plain lane's 74 threads, and, with those below, within the 296 calls that may wait for one.
            silent.sendall(opened() + b"".join(begun(number) for number in range(1, 501, 2)))
            said = threading.Event()
            open_to_all = ("Recommend", "SimilarItems", "Score", "GetCluster", "ListModels", "GetModel")
            paths = [path for path in METHODS if path.rpartition("/")[2] in open_to_all]
            nothing: Iterator[Any] = iter(said.wait, True)
            calls: list[Any] = [channel.stream_unary(path).future(nothing, timeout=20) for path in paths]
            assert len(calls) == len(open_to_all)
            assert {call.code() for call in calls} == {grpc.StatusCode.CANCELLED}
            said.set()
            with Client(app.address, timeout_seconds=10) as client:
                assert len(client.recommend("u0").items) == 10
                assert len(client.list_models()) == 1
        patiently(lambda: app._guard.under_way.count == 0)


def test_health_is_told_while_others_keep_every_thread_of_the_server(small_models: Path, lane: str) -> None:
    with serving(small_models, lane, working=1, waiting=1, streams=1) as app:
        said = threading.Event()
        nothing: Iterator[Any] = iter(said.wait, True)
        with grpc.insecure_channel(app.address) as silent, grpc.insecure_channel(app.address) as channel:
            path = f"/{MODELS.full_name}/ListModels"
            calls: list[Any] = [silent.stream_unary(path).future(nothing, timeout=20) for _ in range(30)]
            models = model_pb2_grpc.ModelServiceStub(channel)
            patiently(lambda: not is_answered(models.ListModels, ListModelsRequest()))
            probe = health_pb2_grpc.HealthStub(channel)
            for _ in range(20):
                assert probe.Check(HealthCheckRequest(), timeout=5).status == HealthCheckResponse.SERVING
            watched = next(iter(probe.Watch(HealthCheckRequest(), timeout=5)))
            assert watched.status == HealthCheckResponse.SERVING
            assert not any(call.done() for call in calls)
            said.set()


def test_callers_who_send_nothing_wait_for_a_thread_in_bounded_number(small_models: Path, lane: str) -> None:
    with serving(small_models, lane, working=1, waiting=1, streams=1) as app:  # 11 threads
        said = threading.Event()
        nothing: Iterator[Any] = iter(said.wait, True)
        with grpc.insecure_channel(app.address) as silent:
            path = f"/{MODELS.full_name}/ListModels"
            calls: list[Any] = [silent.stream_unary(path).future(nothing, timeout=20) for _ in range(100)]
            patiently(lambda: sum(call.done() for call in calls) == 100 - 4 * 11)
            assert {call.code() for call in calls if call.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            said.set()


def test_probes_are_answered_while_callers_begin_probes_and_do_not_say_what_they_want(
    small_models: Path, lane: str
) -> None:
    with serving(small_models, lane, working=1, waiting=1, streams=1) as app:
        said = threading.Event()
        nothing: Iterator[Any] = iter(said.wait, True)
        with grpc.insecure_channel(app.address) as silent, grpc.insecure_channel(app.address) as channel:
            path, count = f"/{health.SERVICE_NAME}/Check", 300 if lane == "fast" else 30
            calls: list[Any] = [silent.stream_unary(path).future(nothing, timeout=30) for _ in range(count)]
            probe = health_pb2_grpc.HealthStub(channel)
            for _ in range(20):
                assert probe.Check(HealthCheckRequest(), timeout=10).status == HealthCheckResponse.SERVING
            began = time.monotonic()  # each holds memory, and on the plain lane a thread, for a second or so
            assert {call.code() for call in calls} == {grpc.StatusCode.CANCELLED}
            assert time.monotonic() - began < 15
            said.set()


def test_watchers_of_health_who_take_nothing_hold_up_no_probe_no_watcher_and_no_version(
    models_dir: Path, lane: str
) -> None:
    with served(models_dir, lane) as (app, client), grpc.insecure_channel(app.address) as channel:
        host, _, port = app.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as idle:
            idle.sendall(opened_without_window() + b"".join(watched(number) for number in range(1, 41, 2)))
            patiently(lambda: len(app._health._watchers) == 20)
            assert publish_one(models_dir, seed=2) == 2
            patiently(lambda: answering(client) == 2)
            probe = health_pb2_grpc.HealthStub(channel)
            for _ in range(20):
                assert probe.Check(HealthCheckRequest(), timeout=1).status == HealthCheckResponse.SERVING
            watching = probe.Watch(HealthCheckRequest(), timeout=20)
            assert next(watching).status == HealthCheckResponse.SERVING
            patiently(lambda: len(app._health._watchers) == 1)  # the others were hung up on
            watching.cancel()


def test_watchers_who_leave_at_once_leave_nothing_behind(models_dir: Path, lane: str) -> None:
    with served(models_dir, lane) as (app, _), grpc.insecure_channel(app.address) as channel:
        probe = health_pb2_grpc.HealthStub(channel)
        for number in range(500):
            watching = probe.Watch(HealthCheckRequest(service=str(number)), timeout=20)
            time.sleep(number % 20 * 1e-4)
            watching.cancel()
        patiently(lambda: not app._health._watchers and not app._health._of_address)


def is_answered(method: Callable[..., Any], request: Any) -> bool:
    """Whether a call is answered within half a second."""
    return method.future(request, timeout=0.5).code() is grpc.StatusCode.OK  # type: ignore[attr-defined]


def test_answers_that_nobody_takes_keep_no_place(small_models: Path, lane: str) -> None:
    with serving(small_models, lane, working=1, waiting=4) as app:
        host, _, port = app.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as idle:
            idle.sendall(opened_without_window() + b"".join(asked(number) for number in range(1, 41, 2)))
            time.sleep(0.5)
            with Client(app.address, timeout_seconds=1) as client:
                for _ in range(10):
                    assert len(client.recommend("u0").items) == 10
            assert idle.fileno() > 0


def test_a_call_without_a_message_is_answered(small_models: Path, lane: str) -> None:
    with serving(small_models, lane) as app, grpc.insecure_channel(app.address) as channel:
        for path in METHODS:
            if path.endswith("StreamRecommend"):
                continue
            with pytest.raises(grpc.RpcError) as refused:
                channel.stream_unary(path)(iter(()), timeout=5)
            assert refused.value.code() in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.UNIMPLEMENTED,
                grpc.StatusCode.PERMISSION_DENIED,
            )
