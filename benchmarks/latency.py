"""Latency of unary Recommend at half of what the server can do, beside a bare threaded echo at half of what it can.

Each round finds out by h2load how many requests/s a server answers at most, 64 in flight, and then calls it half as
often: evenly, and at random times as independent callers do (Poisson), for ``--seconds`` each. Latency counts from when
a call was due, sent or not, to the end of its answer. The server is pinned to one core, the generator to another, which
it keeps busy. By how much that was late itself is shown in the last column; where it is much, something else ran on its
core, which makes even a good ratio void, and this says so. Rounds alternate between both servers, and the medians of
rounds are reported.
"""

import os
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.open_loop import call_at, due_times
from benchmarks.options import parser_for, request_of
from benchmarks.unary_recommend import (
    GENERATOR_CORE,
    METHOD,
    echo_command,
    load,
    one_by_one,
    pinned,
    print_model,
    require_generator,
    serve_command,
)

PERCENTILES = (50, 90, 99, 99.9)
_QUIET = 0.25  # of the 99th percentile of latency that the generator's lateness may come to


@dataclass
class Row:
    """A server under one kind of load, round by round.

    Attributes:
        rates: requests/s at which it was called.
        micros: latency at each of ``PERCENTILES``.
        ratios: of the 99th percentile to the median latency.
        late: 99th percentile of what the generator sent too late, in µs.
    """

    rates: list[float] = field(default_factory=list)
    micros: list[list[float]] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)


def main() -> None:
    """Prints saturation and percentiles of both servers."""
    parser = parser_for(__doc__, rounds=5)
    parser.add_argument("--requests", type=int, default=20_000, help="to find the saturation with")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load at half of it")
    options = parser.parse_args()
    require_generator()
    os.sched_setaffinity(0, {GENERATOR_CORE})
    request = request_of(options)
    message = request.SerializeToString()
    saturations: dict[str, list[float]] = {"shortlist": [], "echo": []}
    rows = {(name, arrivals): Row() for name in saturations for arrivals in ("even", "Poisson")}
    with pinned(serve_command(options.models_dir)) as ours, tempfile.NamedTemporaryFile() as answer:
        print_model(ours)
        answer.write(one_by_one(ours, request, 1)[0].SerializeToString())
        answer.flush()
        with pinned(echo_command(Path(answer.name))) as echo:
            servers = {"shortlist": ours, "echo": echo}
            for address in servers.values():
                load(address, message, options.requests)  # warms up
            for turn in range(options.rounds):
                for name, address in servers.items():
                    most = load(address, message, options.requests)
                    saturations[name].append(most)
                    for arrivals in ("even", "Poisson"):
                        seed = None if arrivals == "even" else turn
                        half_load(address, message, most / 2, options.seconds, seed, rows[name, arrivals])
    for name, rates in saturations.items():
        print(f"{name}: {statistics.median(rates):,.0f} requests/s at most")
    names = "".join(f"{f'p{percentile:g}':>9}" for percentile in PERCENTILES)
    print(f"{'at half of it':<24}{'calls/s':>9}{names}   {'p99/p50':>8}{'generator late, p99':>22}   (µs)")
    for (name, arrivals), row in rows.items():
        micros = [statistics.median(column) for column in zip(*row.micros, strict=True)]
        late = statistics.median(row.late)
        void = "   void: the machine is not quiet" if late > _QUIET * micros[PERCENTILES.index(99)] else ""
        figures = "".join(f"{figure:>9,.0f}" for figure in [statistics.median(row.rates), *micros])
        print(f"{f'{name}, {arrivals}':<24}{figures}   {statistics.median(row.ratios):>8.2f}{late:>22,.0f}{void}")


def half_load(address: str, message: bytes, rate: float, seconds: float, seed: int | None, row: Row) -> None:
    """Calls a server at a rate for some seconds and adds what was measured to a row; no seed for even spacing."""
    answered = call_at(address, METHOD, message, due_times(rate, round(rate * seconds), seed))
    micros = np.percentile(answered.seconds * 1e6, PERCENTILES).tolist()
    row.rates.append(rate)
    row.micros.append(micros)
    row.ratios.append(micros[PERCENTILES.index(99)] / micros[PERCENTILES.index(50)])
    row.late.append(float(np.percentile(answered.lateness * 1e6, 99)))


if __name__ == "__main__":
    main()
