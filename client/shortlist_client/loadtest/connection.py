"""How the generators reach the server: the one place where a channel is made."""

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from shortlist_client.channel import RECONNECTS

_LARGEST_ANSWER_BYTES = 64 << 20


@dataclass(frozen=True)
class Target:
    """A server and what a caller needs to be let in. It travels to other processes, so it must be picklable.

    Attributes:
        address: HOST:PORT.
        credentials: makes the channel's credentials in the process that uses them, such as a functools.partial of a
            module's function over file names; None, or what gives None, for a plain connection.
        metadata: sent with every call, such as ("authorization", "Bearer …").
        server_name: the name in the server's certificate, where it is not the one in the address.
    """

    address: str
    credentials: Callable[[], grpc.ChannelCredentials | None] | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    server_name: str | None = None


def open_channel(target: Target) -> grpc.Channel:
    """A channel with a connection of its own and no retries, which would hide errors and add to the load."""
    options: list[tuple[str, str | int]] = [
        ("grpc.enable_retries", 0),
        ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
        ("grpc.use_local_subchannel_pool", 1),  # otherwise channels to one address share one connection
        ("grpc.max_receive_message_length", _LARGEST_ANSWER_BYTES),
        *RECONNECTS,
    ]
    if target.server_name is not None:
        options.append(("grpc.ssl_target_name_override", target.server_name))
    credentials = None if target.credentials is None else target.credentials()
    if credentials is None:
        return grpc.insecure_channel(target.address, options)
    return grpc.secure_channel(target.address, credentials, options)
