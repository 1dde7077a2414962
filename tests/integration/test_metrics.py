"""Metrics, scraped over HTTP from real servers that are really asked."""

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from shortlist.v1 import recommender_pb2_grpc
from shortlist.v1.recommender_pb2 import RecommendRequest, StreamRecommendRequest
from shortlist_client import Client, DeadlineExceeded, ShortlistError, UserNotFound
from shortlist_server.access.config import AccessConfig
from shortlist_server.app import ServerApp
from shortlist_server.config import ServerConfig
from shortlist_server.telemetry import endpoint
from shortlist_server.telemetry.config import TelemetryConfig
from shortlist_server.telemetry.endpoint import workers_endpoint
from shortlist_server.telemetry.observer import Load
from shortlist_server.telemetry.recorder import Telemetry
from tests.callers import ASKED, CODE, RECOMMEND, TokensFile, code
from tests.integration.test_workers import workers_of
from tests.running import HeldSearch, server_process, serving, shortlist
from tests.scraping import Scrape, patiently, scrape_until
from tests.versions import publish_one

SCRAPED = TelemetryConfig(metrics_port=0)


def url_of(app: ServerApp) -> str:
    assert app.metrics_url is not None
    return app.metrics_url


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def counted(scrape: Scrape, method: str, code: str = "OK") -> float:
    return scrape.value("shortlist_requests_total", method=method, code=code)


def test_every_metric_moves_when_what_it_counts_happens(small_models: Path, lane: str) -> None:
    with serving(small_models, lane, telemetry=SCRAPED) as app, Client(app.address, timeout_seconds=10) as client:
        url = url_of(app)
        before = Scrape(url)
        for metric in ("requests", "fallbacks", "short_answers", "refused"):
            assert before.series(f"shortlist_{metric}_total") > 0  # there from the start, so that rates are
            assert before.value(f"shortlist_{metric}_total") == 0
        for user in ("u0", "u1", "u2"):
            client.recommend(user)
        with pytest.raises(UserNotFound):
            client.recommend("nobody")
        client.recommend("nobody", fallback="popular")
        client.recommend("nobody", fallback="cluster")
        client.recommend("u0", min_score=1e9)
        client.similar_items(["i1"])
        client.score("u0", ["i1"])
        client.batch_recommend(["u0", "nobody", "u1"])
        list(client.stream_recommend([("a", RecommendRequest(user_id="u0")), ("b", RecommendRequest(user_id="no"))]))
        client.get_cluster("user", label=0)
        client.list_models()

        scrape = scrape_until(url, lambda scrape: counted(scrape, "ListModels") == 1)
        for method, calls in {
            "Recommend": 6,
            "SimilarItems": 1,
            "Score": 1,
            "BatchRecommend": 1,
            "GetCluster": 1,
        }.items():
            assert counted(scrape, method) == calls
            assert scrape.value("shortlist_request_duration_seconds_count", method=method) == calls
            assert scrape.value("shortlist_request_duration_seconds_sum", method=method) > 0
        assert counted(scrape, "StreamRecommend") == 1
        assert scrape.value("shortlist_request_duration_seconds_count", method="StreamRecommend") == 0
        assert counted(scrape, "Recommend", "NOT_FOUND") == 1
        assert scrape.value("shortlist_entry_errors_total", method="BatchRecommend", code="NOT_FOUND") == 1
        assert scrape.value("shortlist_entry_errors_total", method="StreamRecommend", code="NOT_FOUND") == 1
        for query, queries in {"recommend": 12, "similar_items": 1, "score": 1}.items():
            assert scrape.value("shortlist_queue_duration_seconds_count", query=query) == queries
            assert scrape.value("shortlist_batch_size_sum", query=query) == queries
            assert 0 < scrape.value("shortlist_compute_duration_seconds_count", query=query) <= queries
        assert scrape.value("shortlist_answers_total", version="1", query="recommend") == 9
        assert scrape.value("shortlist_fallbacks_total", source="popular") == 1
        assert scrape.value("shortlist_fallbacks_total", source="cluster") == 1
        assert scrape.value("shortlist_short_answers_total", reason="min_score") == 1
        assert scrape.value("shortlist_search_duration_seconds_count", index="items") == 6
        assert scrape.value("shortlist_search_duration_seconds_count", index="neighbours") == 1
        assert scrape.value("shortlist_refused_total") == 0


def test_a_scrape_says_what_is_loaded_how_busy_the_server_is_and_what_it_takes(
    small_models: Path, lane: str, slow_search: HeldSearch
) -> None:
    config = {"working": 1, "waiting": 2, "telemetry": SCRAPED}
    with serving(small_models, lane, **config) as app, Client(app.address, timeout_seconds=20) as client:
        calls = [threading.Thread(target=client.recommend, args=("u0",)) for _ in range(2)]
        for call in calls:
            call.start()
        slow_search.begun.wait(20)
        scrape = scrape_until(url_of(app), lambda scrape: scrape.value("shortlist_queue_depth") == 2)
        assert scrape.value("shortlist_queue_places") == 3
        assert scrape.value("shortlist_requests_in_flight") == 2
        assert scrape.value("shortlist_model_loaded", version="1", model="made") == 1
        assert scrape.value("shortlist_model_default", version="1") == 1
        assert scrape.value("shortlist_model_events_total", event="ready") == 1
        assert time.time() - 60 < scrape.value("shortlist_model_last_swap_timestamp_seconds") <= time.time()
        assert scrape.value("shortlist_ready") == 1
        assert scrape.value("shortlist_user_table_bytes", version="1", device="cpu") == 30 * 9 * 4
        assert 50e6 < scrape.value("shortlist_resident_memory_bytes") < 8e9
        assert scrape.series("shortlist_device_memory_bytes") == 0
        slow_search.let_go()
        for call in calls:
            call.join(20)
        scrape_until(url_of(app), lambda scrape: scrape.value("shortlist_queue_depth") == 0)


def test_calls_that_are_turned_away_are_counted_by_reason(
    small_models: Path, lane: str, slow_search: HeldSearch
) -> None:
    config = {"working": 1, "waiting": 1, "telemetry": SCRAPED}
    with serving(small_models, lane, **config) as app, Client(app.address, timeout_seconds=20) as client:
        first = threading.Thread(target=client.recommend, args=("u0",))
        first.start()
        slow_search.begun.wait(20)
        with pytest.raises(DeadlineExceeded):
            client.with_timeout(0.3).recommend("u0")
        second = threading.Thread(target=client.recommend, args=("u0",))
        second.start()
        # Where the deadline passed in the queue, the place is free again a moment later, and the client tries again.
        scrape_until(url_of(app), lambda scrape: scrape.value("shortlist_refused_total", reason="deadline_passed") == 1)
        before = scrape_until(url_of(app), lambda scrape: scrape.value("shortlist_queue_depth") == 2)
        with grpc.insecure_channel(app.address) as channel:
            stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Recommend(RecommendRequest(user_id="u0"), timeout=20)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            (answer,) = stub.StreamRecommend(
                iter([StreamRecommendRequest(request=RecommendRequest(user_id="u0"))]), timeout=20
            )
            assert answer.outcome.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        scrape = Scrape(url_of(app))
        queue_full = [each.value("shortlist_refused_total", reason="queue_full") for each in (before, scrape)]
        assert queue_full[1] - queue_full[0] == 2
        refused = [counted(each, "Recommend", "RESOURCE_EXHAUSTED") for each in (before, scrape)]
        assert refused[1] - refused[0] == 1
        assert counted(scrape, "Recommend", "DEADLINE_EXCEEDED") == 1
        slow_search.let_go()
        first.join(20)
        second.join(20)


def test_methods_that_strangers_make_up_are_counted_together(small_models: Path, tmp_path: Path) -> None:
    tokens = TokensFile(tmp_path / "tokens")
    tokens.add("shop", "read")
    telemetry = TelemetryConfig(metrics_port=0)
    with serving(small_models, telemetry=telemetry, access=AccessConfig(tokens=tokens.path)) as app:
        with grpc.insecure_channel(app.address) as channel:
            for number in range(20):
                assert code(channel, f"/shortlist.v1.RecommenderService/Made{number}") is not CODE.OK
        scrape = scrape_until(
            url_of(app), lambda scrape: scrape.value("shortlist_requests_total", method="other") == 20
        )
        assert "Made" not in str(scrape.samples)


def test_a_version_that_is_refused_is_counted(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    with serving(tmp_path, telemetry=SCRAPED) as app:
        scrape = Scrape(url_of(app))
        assert scrape.value("shortlist_model_events_total", event="refused") == 1
        assert scrape.value("shortlist_ready") == 0
        with Client(app.address, timeout_seconds=0.2) as client, pytest.raises(ShortlistError):
            client.recommend("u0")
        scrape_until(url_of(app), lambda scrape: scrape.value("shortlist_refused_total", reason="no_model_ready") > 0)


def test_one_scrape_covers_all_workers_and_forgets_the_gauges_of_the_dead(
    small_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the workers' values are kept meanwhile
    url = f"http://127.0.0.1:{free_port()}/metrics"
    port = url.split(":")[2].removesuffix("/metrics")
    with server_process(small_models, "--workers", "2", "--metrics-port", port) as (process, address):
        asked = 0
        pids: set[int] = set()
        while len(pids) < 2 and asked < 100:  # the kernel deals connections out
            with Client(address, timeout_seconds=10) as client:
                client.recommend("u0")
                status = client.server_status()
                assert status is not None
                pids.add(status.pid)
                asked += 1
        assert pids == workers_of(process)
        scrape = scrape_until(url, lambda scrape: counted(scrape, "Recommend") == asked)
        assert counted(scrape, "ListModels") == asked
        assert scrape.value("shortlist_request_duration_seconds_count", method="Recommend") == asked
        assert scrape.value("shortlist_workers") == 2
        both = scrape_until(url, lambda scrape: scrape.value("shortlist_ready") == 2)
        assert both.value("shortlist_model_default", version="1") == 2
        assert both.series("shortlist_resident_memory_bytes") == 2

        dead = min(pids)
        os.kill(dead, signal.SIGKILL)
        again = scrape_until(
            url,
            lambda scrape: (
                scrape.value("shortlist_worker_restarts_total") == 1 and scrape.value("shortlist_ready") == 2
            ),
        )
        assert again.value("shortlist_resident_memory_bytes", pid=str(dead)) == 0
        assert again.series("shortlist_resident_memory_bytes") == 2
        assert counted(again, "Recommend") == asked  # what the dead one counted stays counted
        assert again.value("shortlist_workers") == 2
        assert list(tmp_path.iterdir()) != []
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert list(tmp_path.iterdir()) == []


def test_a_worker_that_dies_is_replaced_and_counted_after_somebody_removed_the_temporary_folders(
    small_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    port = str(free_port())
    with server_process(small_models, "--workers", "2", "--metrics-port", port) as (process, address):
        for folder in tmp_path.glob("shortlist-*"):
            shutil.rmtree(folder)
        os.kill(min(workers_of(process)), signal.SIGKILL)
        # What the other one counts went with the folder.
        again = scrape_until(f"http://127.0.0.1:{port}/metrics", lambda scrape: scrape.value("shortlist_ready") == 1)
        assert again.value("shortlist_worker_restarts_total") == 1
        assert again.value("shortlist_workers") == 2
        patiently(lambda: len(list(tmp_path.glob("shortlist-workers-*/*.json"))) == 2)  # they tell one another again
        with Client(address, timeout_seconds=10) as client:
            assert len(client.recommend("u0").items) == 10
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert list(tmp_path.iterdir()) == []


def test_metrics_are_off_unless_asked_for_and_a_port_in_use_is_told(small_models: Path) -> None:
    with serving(small_models) as quiet:
        assert quiet.metrics_url is None
    with serving(small_models, telemetry=SCRAPED) as app:
        url = url_of(app)
        assert url.startswith("http://127.0.0.1:")
        port = url.split(":")[2].removesuffix("/metrics")
        in_use = f"cannot listen on 127.0.0.1:{port} for metrics: Address already in use"
        with pytest.raises(OSError, match=in_use):
            ServerApp(ServerConfig(small_models, port=0, telemetry=TelemetryConfig(metrics_port=int(port))))
        options = ["--port", "0", "--metrics-port", port, "--workers", "2"]
        second = shortlist("serve", "--models-dir", str(small_models), *options)
        assert second.returncode == 1
        assert in_use in second.stderr
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)


def test_a_message_too_large_for_grpc_is_counted_by_the_fast_lane_as_one_that_cannot_be_read(
    small_models: Path, lane: str
) -> None:
    options = [("grpc.max_send_message_length", -1)]
    with serving(small_models, lane, telemetry=SCRAPED) as app, grpc.insecure_channel(app.address, options) as channel:
        too_large = RecommendRequest(user_id="u" * (20 << 20)).SerializeToString()
        assert code(channel, RECOMMEND, asked=too_large) is CODE.RESOURCE_EXHAUSTED
        assert code(channel, RECOMMEND, asked=ASKED) is CODE.OK
        scrape = scrape_until(url_of(app), lambda scrape: counted(scrape, "Recommend") == 1)
        assert counted(scrape, "Recommend", "INVALID_ARGUMENT") == (lane == "fast")
        assert scrape.value("shortlist_requests_total", method="Recommend") == 1 + (lane == "fast")


def test_connections_to_the_metrics_port_that_are_reset_print_nothing(
    small_models: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(small_models, telemetry=SCRAPED) as app:
        url = url_of(app)
        address = "127.0.0.1", int(url.split(":")[2].removesuffix("/metrics"))
        for asked in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") * 5:
            with socket.create_connection(address) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends by a reset
                connection.sendall(asked)
        assert Scrape(url).series("shortlist_ready") == 1  # it answers whoever waits for it
        patiently(lambda: not any("process_request_thread" in thread.name for thread in threading.enumerate()))
    assert capfd.readouterr().err == ""


def test_a_scrape_that_cannot_be_answered_prints_nothing_and_one_that_never_asks_ends(
    small_models: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert endpoint._Scrape.timeout == 10
    monkeypatch.setattr(endpoint._Scrape, "timeout", 0.5)
    with serving(small_models, telemetry=SCRAPED) as app:
        url = url_of(app)
        odd = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text; version=abc"})
        with pytest.raises(urllib.error.HTTPError) as failed:
            urllib.request.urlopen(odd, timeout=5)
        assert failed.value.code == 500
        failed.value.close()
        address = "127.0.0.1", int(url.split(":")[2].removesuffix("/metrics"))
        for asked in (b"", b"GET /met"):
            with socket.create_connection(address, timeout=5) as connection:
                connection.sendall(asked)
                assert connection.recv(100) == b""
        assert Scrape(url).series("shortlist_ready") == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TelemetryConfig(metrics_port=70_000), "metrics_port must lie between"),
        (lambda: TelemetryConfig(slow_ms=-1), "slow_ms must lie between"),
        (lambda: TelemetryConfig(traces="some"), "traces must be one of auto, on, off, not 'some'"),
    ],
)
def test_telemetry_out_of_its_range_says_so(make: Callable[[], TelemetryConfig], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_gauges_of_a_version_end_with_it(tmp_path: Path) -> None:
    publish_one(tmp_path, seed=1)
    with serving(tmp_path, keep=0, look_seconds=0.02, telemetry=SCRAPED) as app:
        for version in ("2", "3"):
            publish_one(tmp_path, seed=int(version))
            scrape = scrape_until(
                url_of(app),
                lambda scrape, version=version: (  # type: ignore[misc]
                    scrape.value("shortlist_model_default", version=version) == 1
                    and scrape.value("shortlist_model_loaded") == 1
                ),
            )
        for gauge in ("model_loaded", "model_default", "user_table_bytes"):
            assert scrape.series(f"shortlist_{gauge}") == 1
            assert scrape.value(f"shortlist_{gauge}", version="3") > 0


def test_the_gauges_of_a_version_that_no_worker_has_any_more_end() -> None:
    worker = """
from shortlist_server.telemetry.metrics import Metrics
metrics = Metrics([])
metrics.ready.set(0)
for version in ("1", "2"):
    metrics.model_loaded[version, "made"].set(1)
metrics.model_loaded.forget(version="1")
"""
    with workers_endpoint("127.0.0.1", 0) as endpoint:
        assert endpoint is not None
        subprocess.run([sys.executable, "-W", "error", "-c", worker], env=endpoint.environment, check=True)
        scrape = Scrape(endpoint.url)
    assert scrape.series("shortlist_model_loaded") == scrape.value("shortlist_model_loaded", version="2") == 1
    assert scrape.series("shortlist_ready") == 1  # at 0, which is worth an alert


def test_the_load_is_looked_at_again_after_a_look_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    looks: Iterator[Exception | Load] = iter([ZeroDivisionError("once"), Load(queue_depth=7)])

    def load() -> Load:
        look = next(looks, Load())
        if isinstance(look, Exception):
            raise look
        return look

    telemetry = Telemetry(SCRAPED, [])
    telemetry.listen()
    telemetry.start(load)
    try:
        assert telemetry.metrics_url is not None
        scrape_until(telemetry.metrics_url, lambda scrape: scrape.value("shortlist_queue_depth") == 7)
    finally:
        telemetry.stop()
    assert "the load could not be looked at" in caplog.text
