"""What a server tells of itself over gRPC: its status, health per service, channelz."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from shortlist_client import Client, UserNotFound
from shortlist_server.access.config import AccessConfig
from shortlist_server.service import health as health_module
from tests.callers import CODE, TokensFile, code
from tests.running import serving, shortlist
from tests.scraping import patiently


def listed_services(channel: grpc.Channel) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10)
    return {service.name for service in answer.list_services_response.service}


def test_the_status_says_how_the_process_is_doing_and_each_version_how_much_it_answered(
    small_models: Path, lane: str
) -> None:
    with serving(small_models, lane, working=3, waiting=4) as app, Client(app.address, timeout_seconds=10) as client:
        client.batch_recommend(["u0", "u1"])
        client.similar_items(["i1"])
        with pytest.raises(UserNotFound):
            client.recommend("nobody")

        statuses = []

        def over() -> bool:  # a call is under way until its answer is sent, which is later than that is read
            status = client.server_status()
            assert status is not None
            statuses.append(status)
            return status.calls_in_flight == 1

        patiently(over)
        status = statuses[-1]
        assert (status.calls_answered, status.calls_failed) == (1 + len(statuses), 1)
        assert (status.lane, status.queue_depth, status.queue_places) == (lane, 0, 7)
        assert status.last_swap_unix_seconds is not None
        assert 0 < status.uptime_seconds < 60
        (model,) = client.list_models()
        assert model.answers == 3
        assert client.get_model().model == model
        told = shortlist("models", "list", "--server", app.address)
        assert told.returncode == 0
        assert "ready, 3 answers" in told.stdout
        assert f"process {status.pid}, {lane} lane, up " in told.stdout
        assert "1 failed, 0 of 7 places taken" in told.stdout
        assert f'"pid": {status.pid}' in shortlist("models", "status", "--server", app.address, "--json").stdout


def test_health_is_told_for_the_whole_server_and_for_each_service(tmp_path: Path) -> None:
    serving_states = health_pb2.HealthCheckResponse
    with serving(tmp_path) as app, grpc.insecure_channel(app.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service, state in {
            "": serving_states.NOT_SERVING,
            "shortlist.v1.RecommenderService": serving_states.NOT_SERVING,
            "shortlist.v1.ModelService": serving_states.SERVING,
        }.items():
            assert health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == state


def test_channelz_counts_the_calls_of_both_lanes_and_is_off_unless_asked_for(small_models: Path, lane: str) -> None:
    with serving(small_models, lane) as app, grpc.insecure_channel(app.address) as channel:
        assert "grpc.channelz.v1.Channelz" not in listed_services(channel)
    with (
        serving(small_models, lane, channelz=True) as app,
        grpc.insecure_channel(app.address) as channel,
        Client(app.address, timeout_seconds=10) as client,
    ):
        assert "grpc.channelz.v1.Channelz" in listed_services(channel)
        for _ in range(5):
            client.recommend("u0")
        stub = channelz_pb2_grpc.ChannelzStub(channel)
        servers = stub.GetServers(channelz_pb2.GetServersRequest(), timeout=10).server
        (server,) = [server for server in servers if server.data.calls_started >= 5]
        assert server.data.calls_succeeded >= 5


def test_channelz_is_asked_with_a_token_at_a_rate_and_malformed_questions_are_no_accident(
    small_models: Path, lane: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = TokensFile(tmp_path / "tokens")
    shop = tokens.add("shop", "read", rate=3)
    path = "/grpc.channelz.v1.Channelz/GetServers"
    with (
        serving(small_models, lane, channelz=True, access=AccessConfig(tokens=tokens.path)) as app,
        grpc.insecure_channel(app.address) as channel,
    ):
        assert code(channel, path) is CODE.UNAUTHENTICATED
        assert code(channel, path, shop, b"\xff") is CODE.INVALID_ARGUMENT
        assert code(channel, path, shop) is CODE.OK
        assert CODE.RESOURCE_EXHAUSTED in {code(channel, path, shop) for _ in range(30)}
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def test_so_many_watch_health_and_no_more_and_who_leaves_makes_room(
    small_models: Path, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "_WATCHERS_OF_ADDRESS", 3)
    with serving(small_models, lane) as app, grpc.insecure_channel(app.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def watch(name: str = "") -> Any:
            watching = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=60)
            next(watching)
            return watching

        watches = [watch(name) for name in ("", "made up", "")]
        with pytest.raises(grpc.RpcError) as refused:
            watch()
        assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        for watching in watches:
            watching.cancel()
        patiently(lambda: not app._health._watchers)
        assert not app._health._of_address
        watch().cancel()


def test_health_of_a_service_whose_name_is_too_long_is_refused_and_watched_by_nobody(
    small_models: Path, lane: str
) -> None:
    with serving(small_models, lane) as app, grpc.insecure_channel(app.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        long, longest = (health_pb2.HealthCheckRequest(service="x" * length) for length in (257, 256))
        for _ in range(70):  # more than may watch
            with pytest.raises(grpc.RpcError) as refused:
                next(stub.Watch(long, timeout=10))
            assert refused.value.code() is CODE.INVALID_ARGUMENT
        assert not app._health._watchers
        watching = stub.Watch(longest, timeout=10)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watching.cancel()
        for request, expected in ((long, CODE.INVALID_ARGUMENT), (longest, CODE.NOT_FOUND)):
            with pytest.raises(grpc.RpcError) as refused:
                stub.Check(request, timeout=10)
            assert refused.value.code() is expected
