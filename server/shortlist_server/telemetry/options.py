"""The options of ``shortlist serve`` about metrics, traces and log lines."""

import argparse

from shortlist_server.telemetry.config import TRACES, TelemetryConfig


def add_telemetry_options(serve: argparse.ArgumentParser) -> None:
    """Adds the options to ``shortlist serve``."""
    serve.add_argument(
        "--metrics-port",
        type=int,
        metavar="P",
        help="where Prometheus may scrape, 0 for any free port; off if not given",
    )
    serve.add_argument("--metrics-host", default="127.0.0.1", metavar="H", help="address of the metrics' port")
    serve.add_argument(
        "--traces",
        choices=TRACES,
        default="auto",
        help="OpenTelemetry spans: on; off; auto: on where OTEL_EXPORTER_OTLP_ENDPOINT is set",
    )
    serve.add_argument("--log-format", choices=["text", "json"], default="text", help="one line each, to stderr")
    serve.add_argument("--access-log", action="store_true", help="a line for every call that does not expire waiting")
    serve.add_argument(
        "--slow-ms", type=float, default=500.0, metavar="MS", help="a line for calls that take so long, 0 for none"
    )
    serve.add_argument("--channelz", action="store_true", help="serve gRPC's own account of its sockets and calls")


def telemetry_config(options: argparse.Namespace) -> TelemetryConfig:
    """What the options say.

    Raises:
        ValueError: a value is out of its range.
    """
    return TelemetryConfig(
        # One of several workers is scraped through the process that started it.
        metrics_port=None if options.share_port else options.metrics_port,
        metrics_host=options.metrics_host,
        slow_ms=options.slow_ms,
        access_log=options.access_log,
        traces=options.traces,
    )
