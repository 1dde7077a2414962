"""Ten and 32 times the calls that saturate the server, with deadlines shorter than its queue, as the callers see it.

The callers are `shortlist loadtest`, a closed loop over ten connections that counts what it was answered before the
deadline; who fails asks again at once. One server lets each connection have as many calls under way as it does unless
told otherwise, another few (``--calls-per-connection``). Rounds alternate between the two; shares are of what the same
server answers at its usual load just before. Servers have one core, the callers the other.
"""

import statistics
import tempfile
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path

from benchmarks.loadtest_agreement import loadtest
from benchmarks.options import parser_for
from benchmarks.unary_recommend import pinned, print_model, serve_command

USUAL = (10, 64, 2.0)
LOADS = {"10 times, 50 ms": (10, 640, 0.05), "32 times, 100 ms": (10, 2_048, 0.1)}
"""Connections, calls in flight over all of them, and their deadline in seconds."""


def main() -> None:
    """Prints answers/s, their share of the usual, and why the others failed."""
    parser = parser_for(__doc__, rounds=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--calls", type=int, default=32, help="a connection, of the second server")
    options = parser.parse_args()
    shares: dict[tuple[str, str], list[float]] = defaultdict(list)
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    errors: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        users = folder / "users"
        users.write_text(f"{options.user}\n")
        serve = serve_command(options.models_dir)
        servers = {
            "as it is": stack.enter_context(pinned(serve)),
            f"{options.calls} calls": stack.enter_context(
                pinned([*serve, "--calls-per-connection", str(options.calls)])
            ),
        }
        for number, address in enumerate(servers.values()):
            if number == 0:
                print_model(address)
            loadtest(address, users, folder, USUAL, options.seconds)  # warms up
        for _ in range(options.rounds):
            for name, address in servers.items():
                for load, overload in LOADS.items():
                    usual = loadtest(address, users, folder, USUAL, options.seconds)["rate"]
                    figures = loadtest(address, users, folder, overload, options.seconds)
                    shares[load, name].append(figures["rate"] / usual)
                    rates[load, name].append(figures["rate"])
                    errors[load, name].update(figures["errors"])
    for (load, name), of in shares.items():
        failed = ", ".join(
            f"{code} {count / options.rounds / options.seconds:,.0f}/s"
            for code, count in sorted(errors[load, name].items())
        )
        rate = statistics.median(rates[load, name])
        print(f"{load:<18}{name:<10}{rate:>8,.0f} answered/s, {statistics.median(of):.2f} of the usual   {failed}")


if __name__ == "__main__":
    main()
