"""What a connection may cost, whoever is at its other end: settings of gRPC's own."""

MAX_REQUEST_BYTES = 16 << 20
"""The contract lets a request name 10,000 ids of 512 bytes, which is more than the 4 MiB that gRPC allows by itself."""

_MAX_METADATA_BYTES = 16 << 10


def connection_options(connections: int, calls: int) -> list[tuple[str, int]]:
    """Options of a server's channels.

    Args:
        connections: that may be open at once.
        calls: of each that may be under way at once.
    """
    return [
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        # Room for a token and a trace. gRPC's own limits are 8 KiB, beyond which a call is refused by chance, and 16,
        # beyond which it is refused; a call shall not depend on chance.
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
        # The caller's library holds back the others. Those that it sends before the server is done with the last of an
        # earlier one are refused by HTTP/2, which the caller sees as UNAVAILABLE unless its library asks again. Without
        # a limit, one connection could make the server keep any number of half-sent requests.
        ("grpc.max_concurrent_streams", calls),
        # Each takes a file and some 100 KB; those beyond are closed before their handshake.
        ("grpc.max_allowed_incoming_connections", connections),
        # Who connects and then does not speak TLS and HTTP/2 is cut off, after two minutes unless told otherwise.
        ("grpc.server_handshake_timeout_ms", 10_000),
        # A peer that has vanished is found out after 80 s and not after two hours, and one that has asked nothing for
        # half an hour connects anew when it does.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_connection_idle_ms", 30 * 60_000),
        # Callers look up anew where servers are, by which new ones get their share. Calls under way go on, streams for
        # an hour at most.
        ("grpc.max_connection_age_ms", 10 * 60_000),
        ("grpc.max_connection_age_grace_ms", 60 * 60_000),
        # Clients may look after their connections in turn, idle ones too, every ten seconds; who pings faster has two
        # strikes. Unless told otherwise, gRPC cuts off whoever pings more often than every five minutes, as load
        # balancers and well-meant settings do.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
    ]
