"""Everything that can be chosen about a server."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shortlist_server.access.config import AccessConfig
from shortlist_server.model.choices import is_label
from shortlist_server.model.traffic import parse_splits
from shortlist_server.telemetry.config import TelemetryConfig

LANES = ("auto", "fast", "plain")


@dataclass(frozen=True)
class ServerConfig:
    """Everything that can be chosen about a server.

    Attributes:
        models_dir: the folder whose newest good version answers.
        host: the address to listen on; loopback unless told otherwise.
        port: 0 for any free one.
        device: torch device of the user table, "auto" for a GPU where there is one.
        working: requests that compute at once.
        waiting: requests that may wait for their turn.
        streams: streams that may be open at once.
        drain_seconds: how long health has been NOT_SERVING before new calls are refused.
        grace_seconds: how long calls under way may take to finish at shutdown.
        tables: where the workers of a server exchange tables, so that each is in a GPU's memory once
            (device/exchange.py); None where there is one worker.
        share_port: other processes may listen on the port too; calls are dealt out among them.
        lane: how queries are answered: "fast", in batches (service/fast_lane.py); "plain", call by call on a pool
            of threads; "auto", fast where this grpcio can.
        look_seconds: how often the models folder is looked at for new versions and labels.
        workers_dir: where the workers of one server, on one machine, tell one another which versions they have ready;
            None for a server of one process.
        handover_seconds: for how long after the first worker has a version ready the others are waited for.
        keep: how many older versions stay loaded beside the newest.
        default_label: bears the version that answers when none is named; None for the newest.
        splits: shares of the users, each as LABEL=PERCENT, whose requests go to the version of a label when they name
            none.
        shadow: a label whose version is asked what callers asked, when there is time, to compare the answers; None for
            none.
        admin: LoadModel, UnloadModel and SetLabel are answered.
        access: who may call, and how often.
        channelz: gRPC's own account of channels, sockets and calls is served on the port.
        telemetry: what the server says of itself, and where.

    Raises:
        ValueError: a value is out of its range, or strangers would be let in unasked.
    """

    models_dir: Path
    host: str = "127.0.0.1"
    port: int = 50051
    device: str = "auto"
    working: int = 2
    waiting: int = 1_024
    streams: int = 64
    drain_seconds: float = 0.0
    grace_seconds: float = 10.0
    tables: Path | None = None
    share_port: bool = False
    lane: str = "auto"
    look_seconds: float = 0.5
    workers_dir: Path | None = None
    handover_seconds: float = 30.0
    keep: int = 1
    default_label: str | None = None
    splits: Sequence[str] = ()
    shadow: str | None = None
    admin: bool = False
    access: AccessConfig = field(default_factory=AccessConfig)
    channelz: bool = False
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)

    def __post_init__(self) -> None:
        for name, lowest, highest in (
            ("port", 0, 65_535),
            ("working", 1, 1_024),
            ("waiting", 0, 65_536),
            ("streams", 1, 1_024),
            ("drain_seconds", 0, 3_600),
            ("grace_seconds", 0, 3_600),
            ("look_seconds", 0.001, 3_600),
            ("handover_seconds", 0, 3_600),
            ("keep", 0, 1_000),
        ):
            value = getattr(self, name)
            if not lowest <= value <= highest:
                raise ValueError(f"{name} must lie between {lowest:,} and {highest:,}, not be {value:,}")
        if self.lane not in LANES:
            raise ValueError(f"lane must be one of {', '.join(LANES)}, not {self.lane!r}")
        for label in (self.default_label, self.shadow, *(split.label for split in parse_splits(self.splits))):
            if label is not None and not is_label(label):
                raise ValueError(f"a label must be 1 to 63 of a-z, 0-9 and '-', not {label!r}")
        self.access.check_address(self.host, admin=self.admin)
