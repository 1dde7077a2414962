"""Two worker processes on two cores against one on one core: unary Recommend, requests/s.

One server on one core has the generator on the other. Two workers need both, so that the generator, h2load, must run
between them, and what it takes is not theirs. So a rate is divided by the cores that the server had: all that there are
less what the generator used of them, in CPU-seconds a second. Whatever else keeps the workers from their work, waiting
and the kernel among it, counts as their own loss. Two whole cores would answer twice that:

    speed-up = 2 * requests/s of two workers / (2 - generator's cores) / requests/s of one

Beside it stand the raw rates, and requests per CPU-second that the server used, which does not see a server that waits.
Other processes take from one worker as well as from two, in unknown parts; where they used much, the figure is void,
and this says so. As many requests are in flight for each worker. A load goes on for some seconds, not for some
requests: the kernel deals connections out by chance, and the worker with fewer would be done earlier. Rounds
alternate; the speed-up is the median of rounds.
"""

import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import sysconf
from pathlib import Path

from benchmarks.options import parser_for, request_of
from benchmarks.unary_recommend import (
    GENERATOR_CORE,
    SERVER_CORE,
    load,
    one_by_one,
    print_model,
    require_generator,
    serve_command,
    serving,
)

BOTH = (SERVER_CORE, GENERATOR_CORE)
_CONNECTIONS = 16  # of each worker: so many that none is left with few
_IN_FLIGHT = 64  # for each worker
_QUIET = 0.1  # cores that others may use


@dataclass
class Share:
    """What went on during a load.

    Attributes:
        rate: requests/s.
        server: CPU-seconds that the server's processes used a second.
        generator: those of the generator.
        others: those of everything else, the kernel's for nobody among them.
        workers: CPU-seconds a second of the server's processes, each.
    """

    rate: float = 0.0
    server: float = 0.0
    generator: float = 0.0
    others: float = 0.0
    workers: list[float] = field(default_factory=list)


def main() -> None:
    """Prints one line per round and the medians."""
    parser = parser_for(__doc__, rounds=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    options = parser.parse_args()
    require_generator()
    request = request_of(options)
    message = request.SerializeToString()
    serve = serve_command(options.models_dir)
    rounds: list[tuple[Share, Share]] = []
    with serving(serve, SERVER_CORE) as alone, serving([*serve, "--workers", "2"], *BOTH) as together:
        print_model(alone[0])
        one_by_one(together[0], request, 1)
        for _ in range(options.rounds + 1):
            with measured(alone[1]) as one:
                one.rate = loaded(alone[0], message, options.seconds, 1, GENERATOR_CORE)
            with measured(together[1]) as two:
                two.rate = loaded(together[0], message, options.seconds, 2, *BOTH)
            rounds.append((one, two))
    rounds = rounds[1:]  # the first warms both up
    for one, two in rounds:
        print(f"one worker  {described(one)}")
        print(f"two workers {described(two)}: {' and '.join(f'{cores:.2f}' for cores in two.workers)}")
    print(f"raw rates: {statistics.median(two.rate / one.rate for one, two in rounds):.2f} times one worker's")
    per_second = [2 * (two.rate / two.server) / (one.rate / one.server) for one, two in rounds]
    print(f"by the server's CPU-seconds: {statistics.median(per_second):.2f} times")
    scaled = statistics.median(2 * two.rate / (2 - two.generator) / one.rate for one, two in rounds)
    print(f"speed-up with the generator's share accounted for: {scaled:.2f}")
    others = max(share.others for shares in rounds for share in shares)
    if others > _QUIET:
        print(f"void: other processes used up to {others:.2f} cores")


def loaded(address: str, message: bytes, seconds: float, workers: int, *cores: int) -> float:
    """Requests/s of so many workers, from a generator on the given cores."""
    connections, in_flight = workers * _CONNECTIONS, workers * _IN_FLIGHT
    return load(address, message, seconds=seconds, connections=connections, in_flight=in_flight, cores=cores)


@contextmanager
def measured(process: int) -> Iterator[Share]:
    """Fills in what a server and the generator use of the cores within the block."""
    processes = [*children(process), process]
    began, before = time.perf_counter(), [cpu_seconds(one) for one in processes]
    generator, machine = ended_children_seconds(), machine_seconds()
    share = Share()
    yield share
    seconds = time.perf_counter() - began
    assert [*children(process), process] == processes  # a worker that was started anew would begin at nought
    used = [(cpu_seconds(one) - earlier) / seconds for one, earlier in zip(processes, before, strict=True)]
    share.workers = used[:-1] or used  # the process that only watches its workers is none
    share.server, share.generator = sum(used), (ended_children_seconds() - generator) / seconds
    share.others = max(0.0, (machine_seconds() - machine) / seconds - share.server - share.generator)


def children(process: int) -> list[int]:
    """The ids of the processes that a process started."""
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def cpu_seconds(process: int) -> float:
    """User and system time that a process has used so far (proc(5), /proc/PID/stat, fields 14 and 15)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / sysconf("SC_CLK_TCK")


def ended_children_seconds() -> float:
    """User and system time of our own children that have ended: of the generator, while all servers run."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine_seconds() -> float:
    """CPU-seconds that anything has used on this machine so far (proc(5), /proc/stat)."""
    user, nice, system, _idle, _waiting, *interrupts = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, (user, nice, system, *interrupts))) / sysconf("SC_CLK_TCK")


def described(share: Share) -> str:
    """A round's figures in words."""
    cores = f"generator {share.generator:.2f} cores, others {share.others:.2f}, server {share.server:.2f}"
    return f"{share.rate:>8,.0f} requests/s, {cores}"


if __name__ == "__main__":
    main()
