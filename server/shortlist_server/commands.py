"""The server's commands: ``shortlist serve`` and ``shortlist token``."""

import argparse
import atexit
import gc
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from shortlist_server import access_commands
from shortlist_server.heap import share_one_heap, share_what_libraries_allocate, tidy_until
from shortlist_server.signals import on_stop_signals
from shortlist_server.standard_streams import open_those_closed, say
from shortlist_server.telemetry.options import add_telemetry_options, telemetry_config

_SWITCH_SECONDS = 0.0005
"""How long a thread may keep Python to itself: calls must not wait long for one that loads a version."""

_SHORTEST_HUNG_SECONDS = 3
"""Who answers calls says so once a second, and must not be taken for one that hangs in between."""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the server's commands to ``shortlist``."""
    serve = commands.add_parser(
        "serve",
        help="answer queries from the newest published model",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    serve.set_defaults(run=_serve, extra="server")
    serve.add_argument("--models-dir", type=Path, default=Path("models"), metavar="DIR", help="where versions are")
    serve.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on")
    serve.add_argument("--port", type=int, default=50051, metavar="P", help="port to listen on, 0 for any free one")
    serve.add_argument(
        "--device", default="auto", help="of the user table: auto (a GPU where there is one), cpu, cuda …"
    )
    serve.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that share the port and the mapped model"
    )
    serve.add_argument(
        "--hung-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="a worker that answers no calls for so long is replaced, and a process without workers ends; 3 at least, "
        "or 0 for never",
    )
    serve.add_argument("--share-port", action="store_true", help=argparse.SUPPRESS)  # what a worker is started with
    serve.add_argument("--tables", type=Path, help=argparse.SUPPRESS)
    serve.add_argument("--working", type=int, default=os.cpu_count() or 1, help="requests that compute at once")
    serve.add_argument("--waiting", type=int, default=1024, help="requests that may wait for their turn")
    serve.add_argument("--streams", type=int, default=64, help="streams that may be open at once")
    serve.add_argument(
        "--lane",
        default="auto",
        metavar="L",
        help="fast: queries in batches; plain: call by call on threads; auto: fast where this grpcio can",
    )
    serve.add_argument(
        "--look-seconds", type=float, default=0.5, help="how often the models folder is looked at for new versions"
    )
    serve.add_argument("--workers-dir", type=Path, help=argparse.SUPPRESS)  # what a worker is started with
    serve.add_argument(
        "--handover-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="how long a new version, once a worker has it ready, waits for the other workers",
    )
    serve.add_argument(
        "--keep", type=int, default=1, metavar="N", help="older versions that stay loaded beside the newest"
    )
    serve.add_argument(
        "--default-label", metavar="LABEL", help="bears the version that answers when none is named (default: newest)"
    )
    serve.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="LABEL=PERCENT",
        help="this share of the users is answered by the version of a label; may be repeated",
    )
    serve.add_argument(
        "--shadow", metavar="LABEL", help="ask the version of this label the same and compare the answers"
    )
    serve.add_argument("--drain-seconds", type=float, default=0.0, help="from health NOT_SERVING to refusing new calls")
    serve.add_argument("--grace-seconds", type=float, default=10.0, help="for calls under way to finish at shutdown")

    add_telemetry_options(serve)
    serve.add_argument("--admin", action="store_true", help="answer LoadModel, UnloadModel and SetLabel")
    access_commands.add_access_options(serve)
    access_commands.add_token_command(commands)


def _serve(options: argparse.Namespace) -> int:
    open_those_closed()
    share_one_heap()
    # One search is one thread's work: as many threads as cores are busy with different requests already. OpenMP reads
    # this when torch and FAISS are loaded, which is below.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    share_what_libraries_allocate(many_threads=options.lane == "plain")
    try:
        _check_workers(options)
        telemetry_config(options)
        access_commands.check(options)  # at once: torch takes seconds to load
    except (OSError, ValueError) as error:
        sys.stderr.write(f"shortlist: {error}\n")
        return 1
    if options.workers > 1:
        return _serve_by_workers(options)
    from shortlist_server.app import ServerApp
    from shortlist_server.config import ServerConfig
    from shortlist_server.service.priorities import read_when_there_is_time
    from shortlist_server.telemetry.logs import finish_log, log_to_stderr

    log_to_stderr(options.log_format)
    read_when_there_is_time()
    stop = threading.Event()
    on_stop_signals(stop.set)
    if options.share_port:
        threading.Thread(target=_stop_with_supervisor, args=(stop, options), name="supervisor", daemon=True).start()
    try:
        app = ServerApp(
            ServerConfig(
                models_dir=options.models_dir,
                host=options.host,
                port=options.port,
                device=options.device,
                tables=options.tables,
                working=options.working,
                waiting=options.waiting,
                streams=options.streams,
                share_port=options.share_port,
                lane=options.lane,
                drain_seconds=options.drain_seconds,
                grace_seconds=options.grace_seconds,
                look_seconds=options.look_seconds,
                workers_dir=options.workers_dir,
                handover_seconds=options.handover_seconds,
                keep=options.keep,
                default_label=options.default_label,
                splits=options.split,
                shadow=options.shadow,
                admin=options.admin,
                access=access_commands.access_config(options),
                channelz=options.channelz,
                telemetry=telemetry_config(options),
            ),
            _beat_of(options),
        )
        # Before any version is read: whoever reads one has others wait less for a while, and puts back what was.
        sys.setswitchinterval(_SWITCH_SECONDS)
        app.start(stop)
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        finish_log()  # the last line says why
        sys.stderr.write(f"shortlist: {error}\n")
        return 1
    gc.freeze()  # what is there now stays: the collector need not look through it, and through libraries, under load
    gc.set_threshold(20_000)  # a batch makes thousands of objects, none of them in cycles
    if stop.is_set():
        app.stop()
        return 0
    say(f"listening on {app.address}")
    tidy_until(stop)
    app.stop()
    return 0


def _beat_of(options: argparse.Namespace) -> Callable[[], None] | None:
    """What is told that calls are answered."""
    from shortlist_server.heartbeat import Heartbeat, Watchdog

    if options.share_port:
        return Heartbeat(sys.stdout.fileno()).beat
    return Watchdog(options.hung_seconds).beat if options.hung_seconds else None


def _check_workers(options: argparse.Namespace) -> None:
    # A port is checked before it is kept for workers: of a number that is none, the system takes the lower 16 bits.
    for name, lowest, highest in (("workers", 1, 1_024), ("port", 0, 65_535)):
        value = getattr(options, name)
        if not lowest <= value <= highest:
            raise ValueError(f"{name} must lie between {lowest:,} and {highest:,}, not be {value:,}")
    hung = options.hung_seconds
    if hung != 0 and not _SHORTEST_HUNG_SECONDS <= hung <= 86_400:
        raise ValueError(
            f"hung_seconds must be 0, for never, or lie between {_SHORTEST_HUNG_SECONDS} and 86,400, not be {hung:,}"
        )


def _stop_with_supervisor(stop: threading.Event, options: argparse.Namespace) -> None:
    """Stops a worker whose supervisor is gone, however it went: its standard input ends then."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    atexit.register(_remove_folders, options)
    stop.set()
    logging.getLogger(__name__).error("the process that started this worker is gone, so it stops")


def _remove_folders(options: argparse.Namespace) -> None:
    """Removes what a supervisor that was killed has left in the folder of temporary files."""
    from shortlist_server.telemetry.endpoint import FOLDER_VARIABLE

    tables = options.tables.parent if options.tables else None
    for folder in (options.workers_dir, tables, os.environ.get(FOLDER_VARIABLE)):
        if folder is not None and Path(folder).name.startswith("shortlist-"):  # and not a folder of somebody else's
            shutil.rmtree(folder, ignore_errors=True)


def _serve_by_workers(options: argparse.Namespace) -> int:
    from shortlist_server.device.exchange import exchange_for
    from shortlist_server.telemetry.endpoint import workers_endpoint
    from shortlist_server.telemetry.logs import finish_log, log_to_stderr
    from shortlist_server.workers import Workers, reserve_port

    log_to_stderr(options.log_format)
    try:
        port = reserve_port(options.host, options.port)
    except OSError as error:
        sys.stderr.write(
            f"shortlist: cannot listen on {options.host}:{options.port}: {error.strerror}; "
            "choose another with --host and --port\n"
        )
        return 1
    with port:
        number = port.getsockname()[1]
        # What this process was asked, and of the same option the last one counts.
        command = [sys.executable, "-m", "shortlist_client.main", *sys.argv[1:]]
        command += ["--workers", "1", "--port", str(number), "--share-port"]
        try:
            with (
                workers_endpoint(options.metrics_host, options.metrics_port) as metrics,
                exchange_for(options.device) as exchange,
                tempfile.TemporaryDirectory(prefix="shortlist-workers-") as folder,
            ):
                if exchange is not None:
                    command += ["--tables", str(exchange.path)]
                command += ["--workers-dir", folder]
                ending = options.drain_seconds + options.grace_seconds
                workers = Workers(command, options.workers, metrics, options.hung_seconds, ending)
                on_stop_signals(workers.stop)
                host = f"[{options.host}]" if ":" in options.host else options.host
                return workers.run(f"{host}:{number}")
        except OSError as error:
            finish_log()
            sys.stderr.write(f"shortlist: {error}\n")
            return 1
