"""What can be chosen about metrics, traces and log lines."""

from dataclasses import dataclass

TRACES = ("auto", "on", "off")


@dataclass(frozen=True)
class TelemetryConfig:
    """What the server says of itself, and where.

    Attributes:
        metrics_port: where Prometheus may scrape; 0 for any free port, None for nowhere.
        metrics_host: the address of that port; loopback unless told otherwise.
        slow_ms: calls that take at least so many milliseconds are logged, but for malformed ones; 0 for none.
        access_log: every call is logged, but for those that the fast lane lets expire.
        traces: "on"; "off"; "auto", on where OpenTelemetry's environment variables name a place to send them to.

    Raises:
        ValueError: a value is out of its range.
    """

    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    slow_ms: float = 500.0
    access_log: bool = False
    traces: str = "auto"

    def __post_init__(self) -> None:
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65_535:
            raise ValueError(f"metrics_port must lie between 0 and 65,535, not be {self.metrics_port:,}")
        if not 0 <= self.slow_ms <= 3_600_000:
            raise ValueError(f"slow_ms must lie between 0 and 3,600,000, not be {self.slow_ms:,}")
        if self.traces not in TRACES:
            raise ValueError(f"traces must be one of {', '.join(TRACES)}, not {self.traces!r}")
