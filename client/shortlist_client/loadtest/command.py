"""``shortlist loadtest``: its options, and what they come to."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from shortlist_client.loadtest.connection import Target
from shortlist_client.loadtest.generator import Setup
from shortlist_client.loadtest.ids import MOST_SKEW, IdsError, ModelIds, newest_version, read_ids
from shortlist_client.loadtest.processes import GeneratorFailed, Generators, Load, Outcome, Progress, generators
from shortlist_client.loadtest.report import page_of
from shortlist_client.loadtest.saturation import FEWEST_CALLS, Saturation, Trial, find_saturation
from shortlist_client.loadtest.schedule import MOST_RATE, Segment, constant, parse_profile
from shortlist_client.loadtest.slo import parse_slo
from shortlist_client.loadtest.summary import Figures, Question, figures_of, text_of, went_away_text
from shortlist_client.loadtest.workload import MOST_ASKED_FOR, Kind, Workload, bounds, parse_mix

T = TypeVar("T")

_DURATION_SECONDS = 10.0
_TRIAL_SECONDS = 5.0
_FIRST_RATE = 200.0
_IN_FLIGHT = 64  # of a closed loop
_CONNECTIONS = 4
_WRONG_USAGE = 2
_STOPPED = 130


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command to its parser, but for those that say where the server is."""
    load = parser.add_argument_group("how much").add_mutually_exclusive_group()
    load.add_argument("--rate", type=_rate, metavar="R", help="open loop: R calls/s, whether answers come or not")
    load.add_argument(
        "--concurrency", type=_count, metavar="N", help="closed loop: N calls wait at any time (default: 64)"
    )
    load.add_argument(
        "--profile", type=_profile, metavar="P",
        help="open loop: ramp:100-2000/30s, or steps:500,1000,2000/10s with each step held so long",
    )  # fmt: skip
    load.add_argument(
        "--find-saturation", action="store_true", help="open loop: find the highest rate that is sustained"
    )
    more = parser.add_argument_group("how")
    more.add_argument(
        "--duration", type=_positive, metavar="SECONDS", help="default: 10; of each rate that is tried: 5"
    )
    more.add_argument("--warmup", type=_not_negative, default=1.0, metavar="SECONDS", help="not counted (default: 1)")
    more.add_argument("--arrivals", choices=["poisson", "even"], default="poisson", help="of an open loop")
    more.add_argument(
        "--first-rate", type=_rate, default=_FIRST_RATE, metavar="R", help="--find-saturation begins here"
    )
    more.add_argument(
        "--most-p99", type=_positive, metavar="MS",
        help="a p99 that --find-saturation takes for failure (default: ten times the lowest, and 50 at least)",
    )  # fmt: skip
    more.add_argument(
        "--timeout", type=_positive, default=2.0, metavar="SECONDS", help="deadline of a call (default: 2)"
    )
    more.add_argument("--processes", type=_count, default=1, metavar="N", help="that generate load (default: 1)")
    more.add_argument(
        "--connections", type=_count, metavar="N",
        help="of all processes, and as many again for streams (default: 4, and one for each process)",
    )  # fmt: skip
    more.add_argument(
        "--max-in-flight", type=_count, default=10_000, metavar="N",
        help="an open loop's calls that may wait; what is due beyond them counts as failed (default: 10000)",
    )  # fmt: skip
    what = parser.add_argument_group("what")
    what.add_argument(
        "--mix", type=_parsed(parse_mix), default=parse_mix("unary"), metavar="KIND=WEIGHT,…",
        help=f"of {', '.join(Kind)}, such as unary=80,batch=10,similar=10 (default: unary)",
    )  # fmt: skip
    what.add_argument("-k", type=_asked_for, default=10, help="items per answer (default: 10)")
    what.add_argument("--batch-size", type=_asked_for, default=64, metavar="N", help="users of a batch (default: 64)")
    who = what.add_mutually_exclusive_group()
    who.add_argument("--users", type=Path, metavar="FILE", help="user ids, one a line")
    who.add_argument("--users-from-model", type=Path, metavar="DIR", help="a version's folder, such as models/3")
    what.add_argument(
        "--items", type=Path, metavar="FILE", help="item ids for similar, one a line (default: the model's)"
    )
    what.add_argument(
        "--models-dir", type=Path, default=Path("models"), metavar="DIR", help="otherwise: its newest version's users"
    )
    what.add_argument(
        "--zipf",
        type=_skew,
        default=0.99,
        metavar="S",
        help="skew of users and items; 0: all alike (default: 0.99)",
    )
    what.add_argument("--seed", type=int, default=0, help="of arrivals and of who asks (default: 0)")
    result = parser.add_argument_group("result")
    result.add_argument(
        "--check",
        type=_share,
        default=0.01,
        metavar="SHARE",
        help="of the answers that are looked into (default: 0.01)",
    )
    result.add_argument(
        "--slo", type=_parsed(parse_slo), default=(), metavar="O,…", help="p99<20ms,errors<0.1%%,rate>500"
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    result.add_argument("--html", type=Path, metavar="FILE", help="write a report to look at")


def run_loadtest(options: argparse.Namespace, target: Target) -> int:
    """Runs the command: 0 when the objectives were met, 1 when not or when it could not be done, 130 after Ctrl-C.

    Options that do not go together give 2.

    Args:
        options: those of ``add_options``.
        target: the server.
    """
    started = time.time()
    if wrong := _wrong_usage(options):
        sys.stderr.write(f"shortlist: {wrong}\n")
        return _WRONG_USAGE
    saturation = None
    outcome: Outcome | None
    try:
        setup = _setup(options, target)
        with generators(setup, _processes(options)) as running:
            if options.find_saturation:
                outcome, saturation = _search(running, options)
            else:
                outcome = running.run(_load(options), Progress())
        if outcome is None:
            sys.stderr.write("shortlist: stopped before anything was measured\n")
            return _STOPPED
        mix = {str(kind): share for kind, share in options.mix.items()}
        repeated = bounds(setup.workload, _processes(options))
        question = Question(target.address, mix, _shown(options) | repeated, options.slo, started)
        figures = figures_of(question, outcome, saturation)
        sys.stdout.write(text_of(figures) + "".join(f"{name}: {words}\n" for name, words in repeated.items()))
        sys.stdout.flush()
    except (IdsError, GeneratorFailed, OSError) as error:
        sys.stderr.write(f"shortlist: {error}\n")
        return 1
    written = _write(options, figures)
    if not figures["requests"]:
        sys.stderr.write(f"shortlist: no call was due in {figures['seconds']:g} s, so nothing was measured\n")
    elif not figures["ok"]:
        sys.stderr.write(f"shortlist: none of {figures['requests']:,} calls was answered rightly\n")
    if figures["interrupted"]:
        return _STOPPED
    if saturation is not None and saturation.server_went_away:
        sys.stderr.write(f"shortlist: {went_away_text(figures['saturation'])}\n")
        return 1
    found = saturation is None or saturation.rate > 0
    return 0 if written and found and figures["ok"] and all(one["met"] for one in figures["objectives"]) else 1


def _write(options: argparse.Namespace, figures: Figures) -> bool:
    """Writes the reports that are wanted, each whatever becomes of the other; whether all could be written."""
    reports: list[tuple[str, Path | None, Callable[[], str]]] = [
        ("--json", options.json, lambda: json.dumps(figures, indent=2, ensure_ascii=False) + "\n"),
        ("--html", options.html, lambda: page_of(figures)),
    ]
    written = True
    for option, file, text in reports:
        if file is None:
            continue
        try:
            file.write_text(text(), encoding="utf-8")
        except OSError as error:
            sys.stderr.write(f"shortlist: {option} {file} cannot be written: {error.strerror}\n")
            written = False
    return written


def _why_not_writable(file: Path) -> str:
    """Tries it, and leaves the place as it was; empty if all is well."""
    try:
        # Before links are resolved: that of /dev/stdout, say, leads to a pipe by a name under which nothing lies.
        if file.exists() and not (file.is_file() or file.is_dir() or file.is_socket()):
            return ""  # a pipe or a device: whoever reads would take this for the end
        file = file.resolve()  # of a link to what is not there yet, that
        is_new = not file.exists()
        file.open("ab").close()
        if is_new:
            file.unlink()
    except (OSError, RuntimeError) as error:  # of links in a circle the latter
        return getattr(error, "strerror", None) or str(error)
    return ""


def _wrong_usage(options: argparse.Namespace) -> str:
    """Which options do not go together, or cannot be done, and why; empty if all is well."""
    if options.connections is not None and options.connections < _processes(options):
        return (
            f"--connections {options.connections} is fewer than --processes {_processes(options)}: "
            "each process needs one of its own"
        )
    seconds = options.duration or _TRIAL_SECONDS
    if options.find_saturation and options.first_rate * seconds < FEWEST_CALLS:
        return (
            f"--first-rate {options.first_rate:g} makes {options.first_rate * seconds:g} calls in {seconds:g} s: "
            f"fewer than {FEWEST_CALLS} show nothing"
        )
    for objective in options.slo:
        if objective.kind is not None and objective.kind not in options.mix:
            return f"--slo {objective.text}: --mix has no {objective.kind} calls"
    for option, file in (("--json", options.json), ("--html", options.html)):
        if file is not None and (why := _why_not_writable(file)):
            return f"{option} {file} cannot be written: {why}"
    if options.json and options.html and _is_one_file(options.json, options.html):
        return f"--json and --html both name {options.html}: one would overwrite the other"
    return ""


def _is_one_file(one: Path, other: Path) -> bool:
    is_device = one.exists() and not one.is_file()
    return one.resolve() == other.resolve() and not is_device


def _processes(options: argparse.Namespace) -> int:
    """No more than there are calls in flight."""
    return min(options.processes, options.concurrency or _IN_FLIGHT) if _is_closed(options) else int(options.processes)


def _connections(options: argparse.Namespace) -> int:
    return int(options.connections or max(_CONNECTIONS, _processes(options)))


def _is_closed(options: argparse.Namespace) -> bool:
    return not (options.rate or options.profile or options.find_saturation)


def _setup(options: argparse.Namespace, target: Target) -> Setup:
    folder: Path | None = options.users_from_model
    wants_items = Kind.SIMILAR in options.mix
    lacking = [
        name
        for name, file, wanted in (("users", options.users, True), ("items", options.items, wants_items))
        if wanted and file is None
    ]
    if folder is None and lacking:
        folder = newest_version(options.models_dir, lacking)
    users = read_ids(options.users) if options.users else ModelIds(_in(folder, "user_ids"))
    items = (read_ids(options.items) if options.items else ModelIds(_in(folder, "item_ids"))) if wants_items else ()
    return Setup(
        target=target,
        workload=Workload(options.mix, users, items, options.k, options.batch_size, options.zipf),
        place=(0, 1),
        connections=_connections(options),
        timeout_seconds=options.timeout,
        most_in_flight=options.max_in_flight,
        check_share=options.check,
        seed=options.seed,
    )


def _in(folder: Path | None, table: str) -> Path:
    assert folder is not None
    return folder / f"{table}.safetensors"


def _load(options: argparse.Namespace) -> Load:
    seconds = options.duration or _DURATION_SECONDS
    segments: tuple[Segment, ...] = ()
    if options.profile:
        segments = parse_profile(options.profile)
        seconds = sum(segment.seconds for segment in segments)
    elif options.rate:
        segments = constant(options.rate, seconds)
    in_flight = 0 if segments else options.concurrency or _IN_FLIGHT
    return Load(segments, in_flight, options.arrivals == "poisson", options.warmup, seconds)


def _search(running: Generators, options: argparse.Namespace) -> tuple[Outcome | None, Saturation]:
    """The highest rate that is sustained, and the run at it; of none, the last run."""
    outcomes: list[Outcome] = []
    seconds = options.duration or _TRIAL_SECONDS

    def measure(rate: float) -> Trial | None:
        load = Load(constant(rate, seconds), 0, options.arrivals == "poisson", options.warmup, seconds)
        outcome = running.run(load, Progress(f"{rate:,.0f}/s offered, "))
        if outcome.interrupted:
            return None
        outcomes.append(outcome)
        latencies = outcome.tally.latencies()
        return Trial(
            asked=rate,
            offered=outcome.offered_rate,
            achieved=outcome.rate,
            p50=latencies.percentile(50),
            p99=latencies.percentile(99),
            error_share=outcome.error_share,
            calls=outcome.tally.requests,
            generator_limited=bool(outcome.bottleneck),
        )

    found = find_saturation(measure, options.first_rate, options.most_p99 / 1e3 if options.most_p99 else None)
    best = [outcome for outcome, trial in zip(outcomes, found.trials, strict=True) if trial.sustained]
    if best:
        return max(best, key=lambda outcome: outcome.load.segments[0].first_rate), found
    return (outcomes[-1] if outcomes else None), found


def _shown(options: argparse.Namespace) -> dict[str, str]:
    """Options that say what was measured."""
    each = f"for {options.duration or _TRIAL_SECONDS:g} s each"
    shown = {
        "rate": f"{options.rate:,.10g}/s" if options.rate else "",
        "profile": options.profile or "",
        "search": f"from {options.first_rate:,.10g}/s on, {each}" if options.find_saturation else "",
        "k": str(options.k),
        "batch size": str(options.batch_size) if Kind.BATCH in options.mix else "",
        "users": str(options.users or options.users_from_model or f"newest of {options.models_dir}"),
        "Zipf skew": f"{options.zipf:g}",
        "arrivals": "" if _is_closed(options) else options.arrivals,
        "in flight": str(options.concurrency or _IN_FLIGHT) if _is_closed(options) else "",
        "timeout": f"{options.timeout:g} s",
        "connections": str(_connections(options)),
        "seed": str(options.seed),
    }
    return {name: value for name, value in shown.items() if value}


def _parsed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """For argparse, which shows the text of this error alone."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def _profile(text: str) -> str:
    """The profile as it was written, which results repeat."""
    _parsed(parse_profile)(text)
    return text


def _number(text: str, least: float, most: float, wanted: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text}")
    return number


def _positive(text: str) -> float:
    return _number(text, 1e-3, 1e7, "a number from 0.001 to 10,000,000")


def _rate(text: str) -> float:
    return _number(text, 1e-3, MOST_RATE, f"a number from 0.001 to {MOST_RATE:,}")


def _not_negative(text: str) -> float:
    return _number(text, 0.0, 1e4, "a number from 0 to 10,000")


def _share(text: str) -> float:
    return _number(text, 0.0, 1.0, "a share from 0 to 1")


def _skew(text: str) -> float:
    return _number(text, 0.0, MOST_SKEW, f"a number from 0 to {MOST_SKEW:g}")


def _asked_for(text: str) -> int:
    return _count(text, MOST_ASKED_FOR)


def _count(text: str, most: int = 1_000_000) -> int:
    number = _number(text, 1, most, f"a whole number from 1 to {most:,}")
    if not number.is_integer():
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text}")
    return int(number)
