"""`shortlist loadtest` against h2load: requests/s and median latency that both find of the same server.

Both are closed loops over as many connections with as many calls in flight, ask the same of one user, and send the
same deadline; answers are not looked into. Rounds alternate between the two, the first warms up, and ratios are of
rounds. The server has one core and the generator another. It is measured against the server, and against a bare
threaded `grpc.server` that echoes the same answer. Where `shortlist loadtest` says that it was the bottleneck, this
says in how many rounds.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.options import parser_for, request_of
from benchmarks.unary_recommend import (
    GENERATOR_CORE,
    echo_command,
    load,
    one_by_one,
    pinned,
    print_model,
    require_generator,
    serve_command,
)

CONNECTIONS, IN_FLIGHT = 4, 64
DEADLINE_SECONDS = 2
AGREEMENT = 0.15


@dataclass(frozen=True)
class Found:
    """What a generator found.

    Attributes:
        rate: answers/s.
        p50: median latency, in ms.
        bottleneck: why the generator was the slower side; empty where it was not.
    """

    rate: float
    p50: float
    bottleneck: str = ""


def main() -> None:
    """Prints both figures of both generators, and the ratios."""
    parser = parser_for(__doc__, rounds=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    options = parser.parse_args()
    require_generator()
    request = request_of(options)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = stack.enter_context(pinned(serve_command(options.models_dir)))
        print_model(ours)
        answer, users = folder / "answer", folder / "users"
        answer.write_bytes(one_by_one(ours, request, 1)[0].SerializeToString())
        users.write_text(f"{options.user}\n")
        for name, address in {
            "shortlist": ours,
            "threaded echo": stack.enter_context(pinned(echo_command(answer))),
        }.items():
            rounds = [
                (
                    by_h2load(address, request.SerializeToString(), options.seconds, folder),
                    by_loadtest(address, users, options.seconds, folder),
                )
                for _ in range(options.rounds + 1)
            ][1:]
            say(name, rounds)


def by_h2load(address: str, message: bytes, seconds: float, folder: Path) -> Found:
    """What h2load finds, which writes down every answer."""
    log = folder / "h2load.tsv"
    log.unlink(missing_ok=True)
    more = ["--log-file", str(log), "-H", f"grpc-timeout: {DEADLINE_SECONDS}S"]
    rate = load(address, message, seconds=seconds, connections=CONNECTIONS, in_flight=IN_FLIGHT, more=more)
    micros = [int(line.split("\t")[2]) for line in log.read_text().splitlines()]
    return Found(rate, statistics.median(micros) / 1e3)


def by_loadtest(address: str, users: Path, seconds: float, folder: Path) -> Found:
    """What `shortlist loadtest` finds; fails where a call does."""
    more = ("--warmup", "0.5", "--slo", "errors<=0%")
    figures = loadtest(address, users, folder, (CONNECTIONS, IN_FLIGHT, DEADLINE_SECONDS), seconds, more)
    return Found(figures["rate"], figures["latency_ms"]["p50"], figures["generator"]["bottleneck"])


def loadtest(
    address: str,
    users: Path,
    folder: Path,
    load: tuple[int, int, float],
    seconds: float,
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """The figures of `shortlist loadtest`, a closed loop on the generator's core; fails where it does.

    Args:
        address: of the server.
        users: ids, one a line.
        folder: for its files.
        load: connections, calls in flight over all of them, and their deadline in seconds.
        seconds: that it takes.
        more: further options.
    """
    connections, in_flight, deadline = load
    file = folder / "loadtest.json"
    ended = subprocess.run(
        [
            *("taskset", "-c", str(GENERATOR_CORE), sys.executable, "-m", "shortlist_client.main", "loadtest"),
            *("--server", address, "--users", str(users), "--check", "0", "--json", str(file), *more),
            *("--concurrency", str(in_flight), "--connections", str(connections), "--duration", str(seconds)),
            *("--timeout", str(deadline)),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures: dict[str, Any] = json.loads(file.read_text())
    return figures


def say(name: str, rounds: list[tuple[Found, Found]]) -> None:
    """Prints the rounds of a server."""
    for native, ours in rounds:
        print(
            f"{name}: h2load {native.rate:>8,.0f} requests/s, p50 {native.p50:6.2f} ms   "
            f"shortlist loadtest {ours.rate:>8,.0f} requests/s, p50 {ours.p50:6.2f} ms   {ours.bottleneck}".rstrip()
        )
    rate = statistics.median(ours.rate / native.rate for native, ours in rounds)
    p50 = statistics.median(ours.p50 / native.p50 for native, ours in rounds)
    limited = sum(bool(ours.bottleneck) for _, ours in rounds)
    print(
        f"{name}: requests/s {rate:.2f} of h2load's, p50 {p50:.2f} times; "
        f"{'agree' if abs(rate - 1) <= AGREEMENT else 'do not agree'} within {AGREEMENT:.0%}; "
        f"shortlist loadtest was the bottleneck in {limited} of {len(rounds)} rounds"
    )


if __name__ == "__main__":
    main()
