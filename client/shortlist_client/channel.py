"""How both clients connect: retries by gRPC's own service config, message limits, and who they say they are."""

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "shortlist.v1.RecommenderService"}, {"service": "shortlist.v1.ModelService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ],
    # Where a name stands for several servers, all of them are asked in turn.
    "loadBalancingConfig": [{"round_robin": {}}],
    # When most calls fail, retrying them only adds to the load: each failure takes a token, each success gives a tenth
    # back, and below half of the tokens nothing is retried.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}
"""gRPC service config, https://github.com/grpc/grpc/blob/master/doc/service_config.md. Every call may be repeated."""

RECONNECTS = (("grpc.initial_reconnect_backoff_ms", 1_000), ("grpc.max_reconnect_backoff_ms", 1_000))
"""From one try to connect to the next. gRPC, left to itself, waits for up to two minutes though the server is back."""


@dataclass(frozen=True)
class Connection:
    """Which server, how to reach it, and who is calling.

    Attributes:
        target: HOST:PORT, or any gRPC target.
        credentials: for TLS; None for a plain connection.
        server_name: the name in the server's certificate, where it is not the one in the target.
        token: the bearer token of every call; None for none.
        token_in_the_clear: the token may go to another machine without TLS, where something else protects it.

    Raises:
        ValueError: the token would be sent where others can read it, or no header can hold it.
    """

    target: str
    credentials: grpc.ChannelCredentials | None = None
    server_name: str | None = None
    token: str | None = None
    token_in_the_clear: bool = False

    def __post_init__(self) -> None:
        if self.token is None:
            return
        if not (self.token.isascii() and self.token.isprintable() and self.token.strip() == self.token != ""):
            raise ValueError("the token must be printable ASCII without spaces around it")
        if self.credentials is None and not self.token_in_the_clear and not is_local(self.target):
            raise ValueError(
                f"the token would go to {self.target} without TLS, for everyone on the way to read: connect by TLS, or "
                "say that it may go in the clear where something else protects the connection"
            )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def open(self) -> grpc.Channel:
        """A new channel."""
        options = channel_options(self.server_name)
        if self.credentials is None:
            return grpc.insecure_channel(self.target, options)
        return grpc.secure_channel(self.target, self.credentials, options)

    def open_async(self) -> grpc.aio.Channel:
        """A new channel for asyncio."""
        options = channel_options(self.server_name)
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.target, options)
        return grpc.aio.secure_channel(self.target, self.credentials, options)


def is_local(target: str) -> bool:
    """Whether what is sent to a gRPC target stays on this machine."""
    for scheme in ("dns:", "ipv4:", "ipv6:", "passthrough:"):
        target = target.removeprefix(scheme)
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    target = target.lstrip("/")
    host = target if target.count(":") > 1 and "]" not in target else target.rpartition(":")[0] or target
    host = host.strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def channel_options(server_name: str | None = None) -> Sequence[tuple[str, str | int]]:
    """Options of a channel to Shortlist.

    Args:
        server_name: the name in the server's certificate, where it is not the one in the target.
    """
    return [
        ("grpc.enable_retries", 1),
        ("grpc.service_config", json.dumps(RETRIES)),
        # A batch's answer of 100,000 items with ids of 512 bytes is 52 MB.
        ("grpc.max_receive_message_length", 64 << 20),
        *RECONNECTS,
        *([("grpc.ssl_target_name_override", server_name)] if server_name is not None else []),
    ]
