"""The connections of ``shortlist loadtest``, and the two ways it calls."""

import threading
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from shortlist.v1 import recommender_pb2
from shortlist_client.channel import channel_options
from shortlist_client.loadtest.calls import CoreCalls, PlainCalls
from shortlist_client.loadtest.connection import Target, open_channel
from tests.loadtesting import RECOMMEND, Load, answering
from tests.running import serving

_LISTENS = "0A"


def connections_to(port: int) -> set[str]:
    """The far ends of connections that a port of this machine has, or has had within the last minute."""
    tables = [Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table]
    return {line[2] for line in lines if int(line[1].split(":")[1], 16) == port and line[3] != _LISTENS}


@pytest.mark.parametrize(("connections", "processes", "opened"), [(("--connections", "7"), "3", 7), ((), "3", 4)])
def test_as_many_connections_are_opened_as_were_asked_for(
    load: Load, small_models: Path, connections: tuple[str, ...], processes: str, opened: int
) -> None:
    with serving(small_models) as app:
        seen: set[str] = set()
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.01):
                seen.update(connections_to(app.port))

        looking = threading.Thread(target=look)
        looking.start()
        status, figures = load(app.address, *connections, "--processes", processes, "--duration", "0.3")
        over.set()
        looking.join()
    assert status == 0
    assert figures["options"]["connections"] == str(opened)
    assert len(seen) == opened


def _of_the_load_test(address: str) -> grpc.Channel:
    return open_channel(Target(address))


def _of_the_client(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, channel_options())


@pytest.mark.parametrize("channel_to", [_of_the_load_test, _of_the_client])
def test_a_server_that_comes_back_is_reached_within_a_second_or_so(channel_to: Callable[[str], grpc.Channel]) -> None:
    with answering(lambda _: b"") as address:
        pass  # it has gone
    with channel_to(address) as channel:
        ready = grpc.channel_ready_future(channel)
        time.sleep(6)  # by when gRPC, left to itself, would wait for seconds
        with answering(lambda _: b"", port=int(address.rpartition(":")[2])):
            ready.result(2)


def test_the_core_and_the_public_interface_give_the_same(server: str) -> None:
    target = Target(server, metadata=(("x-request-id", "mine"),))
    request = recommender_pb2.RecommendRequest(user_id="u1", k=3).SerializeToString()
    unknown = recommender_pb2.RecommendRequest(user_id="nobody").SerializeToString()
    seen = []
    for way in (CoreCalls, PlainCalls):
        calls = way(open_channel(target), target, 5.0, [RECOMMEND])
        answers = []
        for message in (request, unknown):
            done: futures.Future[tuple[str, bytes, str]] = futures.Future()
            calls.start(RECOMMEND, message, lambda *what, done=done: done.set_result(what))
            status, answer, details = done.result(10)
            items = recommender_pb2.RecommendResponse.FromString(answer).items
            answers.append((status, [item.item_id for item in items], details))
        calls.close()
        seen.append(answers)
    assert seen[0] == seen[1]
    assert [(status, len(items)) for status, items, _ in seen[0]] == [("OK", 3), ("NOT_FOUND", 0)]
