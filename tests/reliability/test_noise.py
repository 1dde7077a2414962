"""Malformed messages and misbehaving connections: no crash, no leak, and the next good request is answered."""

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from shortlist_client import Client
from shortlist_server.heap import TIDY_SECONDS
from tests.reliability import noise
from tests.reliability.conftest import Size
from tests.reliability.processes import Served, anonymous_bytes, open_files, served, thread_count, wait_until

_AT_ONCE = 32
_SECONDS = 20
_ROUNDS = 30
_WARM = _ROUNDS // 3
_GROWTH = 1.02
"""How much more memory a server may have at rest, at the end, than after the warm-up."""

_GROWTH_OF_A_SHORT_RUN = 1.1
"""In which the pools are not full yet: it is for gross leaks."""


@pytest.fixture(scope="module")
def server(small_models: Path, lane: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server process of ``small_models``."""
    few = ("--working", "2", "--waiting", "32", "--streams", "8")
    with served(small_models, tmp_path_factory.mktemp("noise") / "log", "--lane", lane, *few) as server:
        # Each pool starts all the threads that it may have, and keeps them. Otherwise it would start one whenever as
        # many calls as never before are there at once, however late that is.
        watchers = noise.opened_without_window() + b"".join(map(noise.watched, range(1, 17, 2)))
        probes = noise.opened() + b"".join(noise.begun(number, noise.WATCH) for number in range(1, 51, 2))
        others = noise.opened() + b"".join(noise.begun(number, f"{noise.M}GetModel") for number in range(1, 201, 2))
        with contextlib.ExitStack() as silent:
            for calls in (watchers, probes, others):
                caller = socket.create_connection(("127.0.0.1", int(server.port)), timeout=10)
                silent.enter_context(caller).sendall(calls)
                time.sleep(0.5)
            time.sleep(2)  # the silent probes are hung up on
        yield server


def test_malformed_messages_are_refused_and_leave_nothing_behind(
    server: Served, rng: np.random.Generator, size: Size
) -> None:
    codes: Counter[grpc.StatusCode] = Counter()
    with grpc.insecure_channel(server.address) as channel:
        check_nothing_grows(server, lambda count: codes.update(send_messages(channel, rng, count)), size, 100, 5_000)
    assert codes[grpc.StatusCode.INVALID_ARGUMENT] > codes.total() / 10
    allowed = {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    assert set(codes) <= allowed


def test_misbehaving_connections_leave_nothing_behind(server: Served, rng: np.random.Generator, size: Size) -> None:
    def connect(count: int) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda one: noise.misbehave(server.address, one), rng.spawn(count)))

    check_nothing_grows(server, connect, size, 20, 500)


def send_messages(channel: grpc.Channel, rng: np.random.Generator, count: int) -> Iterator[grpc.StatusCode]:
    """Sends messages to methods of every kind, some at a time; what became of them."""
    under_way: list[Any] = []
    for number in range(count):
        path = str(rng.choice([*noise.UNARY, *noise.STREAMS]))
        if path in noise.STREAMS:
            messages = [noise.message(rng) for _ in range(int(rng.integers(1, 4)))]
            call: Any = channel.stream_stream(path)
            yield drained(call(iter(messages), timeout=_SECONDS))
        else:
            call = channel.unary_unary(path)
            under_way.append(call.future(noise.message(rng), timeout=_SECONDS))
        if len(under_way) == _AT_ONCE or number == count - 1:
            yield from [one.code() for one in under_way]
            under_way = []


def drained(stream: Any) -> grpc.StatusCode:
    """The status of a stream, once all of its answers have come."""
    with contextlib.suppress(grpc.RpcError):
        for _ in stream:
            pass
    code: grpc.StatusCode = stream.code()
    return code


def check_nothing_grows(server: Served, make_noise: Callable[[int], object], size: Size, short: int, long: int) -> None:
    """Makes noise ``_ROUNDS`` times, the first third of which may fill pools and caches.

    Raises:
        AssertionError: the server ended, says no more what it should, logs what it should not, or has more memory,
            descriptors or threads than it had.
    """
    pid = server.process.pid
    memory, files, threads, at_rest = [], [], [], []
    for number in range(1, _ROUNDS + 1):
        make_noise(size.of(short, long))
        assert server.process.poll() is None, server.log.read_text()[-2_000:]
        with Client(server.address, timeout_seconds=10) as client:
            assert [len(client.recommend(f"u{number}").items) for number in range(10)] == [10] * 10
        memory.append(anonymous_bytes(pid))
        files.append(open_files(pid))
        threads.append(thread_count(pid))
        if size.scale is not None and number in (_WARM, _ROUNDS):
            time.sleep(2 * TIDY_SECONDS + 10)  # the second time gives back what was in use the first
            at_rest.append(anonymous_bytes(pid))
    wait_until(lambda: open_files(pid) <= max(files[:_WARM]), 20, f"no more open files than {files}")
    wait_until(lambda: thread_count(pid) <= max(threads[:_WARM]) + 4, 20, f"no more threads than {threads}")
    if at_rest:
        assert at_rest[1] <= at_rest[0] * _GROWTH, (at_rest, memory)
    else:
        # The collector of cycles lets memory go from time to time only: what it comes down to must not rise.
        middle = (_WARM + _ROUNDS) // 2
        assert min(memory[middle:]) <= min(memory[_WARM:middle]) * _GROWTH_OF_A_SHORT_RUN, memory
    lines = server.log.read_text().splitlines()  # which fails where callers wrote into it
    assert "Traceback" not in " ".join(lines)
    # Who tries to steer a server is logged, at a bounded rate; noise is not.
    assert len([line for line in lines if "PERMISSION_DENIED" not in line and "were left out" not in line]) < 20
