"""What a call costs that is not answered, refused by the server or let expire by gRPC alone, against an answered one.

Ten times the calls in flight that saturate the server, with deadlines of 50 ms, come to a bare loop around gRPC's own
queue, which keeps each call until gRPC has ended it. The other figures are of Recommend at its usual load: as it is,
and where callers may ask once a second, so that all are refused before their message is read. All are the CPU time of
a server that has one core; the generator has the other.
"""

import os
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent import futures
from pathlib import Path

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, and without types

from benchmarks.options import request_of
from benchmarks.overload import LOADS, USUAL, options_of
from benchmarks.unary_recommend import (
    METHOD,
    SERVER_CORE,
    load,
    serve_command,
    serving,
)

_AT_ONCE = 1_024
_LAST_WORD_SECONDS = 0.1


def main() -> None:
    """Prints microseconds a call, and their ratio."""
    options = options_of(__doc__)
    message = request_of(options).SerializeToString()
    command = serve_command(options.models_dir)
    for _ in range(options.rounds):
        answered = _usual(command, message, options.seconds)
        refused = _usual([*command, "--rate-limit", "1"], message, options.seconds)
        expired, calls = _expiring(message, options.seconds)
        print(f"answered {answered:.0f} us; refused {refused:.0f} us, ratio {refused / answered:.2f}", end="; ")
        print(f"expired {expired:.0f} us at {calls:,.0f} calls/s, ratio {expired / answered:.2f}")


def _usual(command: list[str], message: bytes, seconds: float) -> float:
    """Microseconds of CPU a call."""
    connections, in_flight, _ = USUAL
    with serving(command, SERVER_CORE) as (address, pid):
        load(address, message, 2_000)  # warms up
        before, began = _cpu(pid), time.perf_counter()
        rate = load(address, message, seconds=seconds, connections=connections, in_flight=in_flight)
        return (_cpu(pid) - before) / (rate * (time.perf_counter() - began)) * 1e6


def _expiring(message: bytes, seconds: float) -> tuple[float, float]:
    """Microseconds of CPU a call that expires, and how many a second did."""
    connections, in_flight, deadline = LOADS["10 times, 50 ms"]
    run = "from benchmarks.expiring_calls import keep_until_they_expire as run; run()"
    command = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-c", run]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        address, before, began = process.stdout.readline().split()[-1], _cpu(process.pid), time.perf_counter()
        load(address, message, seconds=seconds, connections=connections, in_flight=in_flight, deadline=deadline)
        spent, took = _cpu(process.pid) - before, time.perf_counter() - began
        process.stdin.close()
        count = int(process.stdout.readline())
    return spent / count * 1e6, count / took


def keep_until_they_expire() -> None:
    """Accepts every call and does nothing about it until standard input closes; then prints how many came."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    core, queue = server._state.server, cygrpc.CompletionQueue()  # type: ignore[attr-defined]  # as the fast lane does
    core.register_completion_queue(queue)
    core.register_method(METHOD)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    count, kept = 0, deque[tuple[float, object]]()
    for _ in range(_AT_ONCE):
        core.request_registered_call(queue, queue, METHOD, METHOD)
    while not over.is_set():
        event = queue.poll(time.time() + 0.2)
        if event.completion_type != cygrpc.CompletionType.queue_timeout:
            count += 1
            kept.append((event.call_details.deadline, event.call))
            core.request_registered_call(queue, queue, METHOD, METHOD)
        while kept and kept[0][0] < time.time() - _LAST_WORD_SECONDS:
            kept.popleft()
    print(count, flush=True)
    os._exit(0)  # without a word to the calls that are left


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
