"""Messages that no client of ours would send, and connections that behave as none should."""

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Sequence

import numpy as np

from shortlist.v1 import common_pb2, model_pb2, recommender_pb2

R, M = "/shortlist.v1.RecommenderService/", "/shortlist.v1.ModelService/"
HEALTH, REFLECTION = "/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/"

UNARY = [
    f"{R}{name}" for name in ("Recommend", "SimilarItems", "Score", "BatchRecommend", "GetCluster", "ListClusters")
] + [f"{M}{name}" for name in ("ListModels", "GetModel", "LoadModel", "UnloadModel", "SetLabel")]
UNARY += [f"{HEALTH}Check", f"{R}NoSuchMethod", "/no.such.Service/Method"]
WATCH = f"{HEALTH}Watch"
STREAMS = [f"{R}StreamRecommend", f"{REFLECTION}ServerReflectionInfo"]

_RECOMMEND = recommender_pb2.RecommendRequest(
    user_id="u1",
    k=5,
    exclude_item_ids=["i3"],
    filter=recommender_pb2.Filter(
        must=[recommender_pb2.Condition(attribute="genres", any_of=[common_pb2.AttributeValue(string_value="Drama")])]
    ),
    attributes=["title"],
    model=common_pb2.ModelSelector(version=1),
)
_HISTORY = recommender_pb2.RecommendRequest(
    history=recommender_pb2.History(items=[recommender_pb2.HistoryItem(item_id="i1", weight=2)])
)
_VALID = [
    message.SerializeToString()
    for message in (
        _RECOMMEND,
        _HISTORY,
        recommender_pb2.BatchRecommendRequest(requests=[_RECOMMEND, _HISTORY]),
        recommender_pb2.StreamRecommendRequest(request_id="1", request=_RECOMMEND),
        recommender_pb2.SimilarItemsRequest(item_ids=["i1", "i2"], negative_item_ids=["i3"], k=4),
        recommender_pb2.ScoreRequest(user_id="u1", item_ids=["i1"]),
        recommender_pb2.GetClusterRequest(kind=recommender_pb2.CLUSTER_KIND_ITEM, label=0),
        model_pb2.GetModelRequest(model=common_pb2.ModelSelector(label="stable")),
    )
]


def message(rng: np.random.Generator) -> bytes:
    """Bytes that may or may not be a message."""
    makers = (_random, _mutated, _mutated, _cut, _wrong_types, _huge_length, _deep, _bad_text, _many, _repeated)
    made: bytes = makers[int(rng.integers(len(makers)))](rng)
    return made


def _valid(rng: np.random.Generator) -> bytes:
    return _VALID[int(rng.integers(len(_VALID)))]


def _random(rng: np.random.Generator) -> bytes:
    return rng.bytes(int(rng.integers(0, 300)))


def _mutated(rng: np.random.Generator) -> bytes:
    content = bytearray(_valid(rng))
    for _ in range(int(rng.integers(1, 6))):
        content[int(rng.integers(len(content)))] = int(rng.integers(256))
    return bytes(content)


def _cut(rng: np.random.Generator) -> bytes:
    content = _valid(rng)
    return content[: int(rng.integers(len(content)))]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _wrong_types(rng: np.random.Generator) -> bytes:
    """Every field as some wire type, the two that are none and those of groups among them."""
    content = b""
    for field in rng.integers(1, 20, 6).tolist():
        wire_type = int(rng.integers(8))
        body = {0: _varint(int(rng.integers(1 << 62))), 1: rng.bytes(8), 2: b"\x03abc", 5: rng.bytes(4)}
        content += _varint(field << 3 | wire_type) + body.get(wire_type, b"")
    return content


def _huge_length(rng: np.random.Generator) -> bytes:
    length = int(rng.choice([1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62]))
    return _varint(int(rng.integers(1, 20)) << 3 | 2) + _varint(length) + rng.bytes(20)


def _deep(rng: np.random.Generator) -> bytes:
    """Messages within messages, deeper than protobuf reads, or groups that open and never close."""
    if rng.random() < 0.5:
        return _varint(int(rng.integers(1, 20)) << 3 | 3) * int(rng.integers(1, 50_000))
    content, field = b"", int(rng.integers(1, 20))
    for _ in range(int(rng.integers(1, 500))):
        content = _varint(field << 3 | 2) + _varint(len(content)) + content
    return content


def _bad_text(rng: np.random.Generator) -> bytes:
    text = bytes(rng.choice([0xC0, 0xED, 0xA0, 0x80, 0xFF, 0x00, 0x41], 12).astype(np.uint8).tolist())
    return b"".join(_varint(field << 3 | 2) + _varint(len(text)) + text for field in (1, 2, 4))


def _many(rng: np.random.Generator) -> bytes:
    """A field again and again."""
    return (_varint(int(rng.integers(1, 20)) << 3 | 2) + b"\x02i1") * int(rng.integers(1, 20_000))


def _repeated(rng: np.random.Generator) -> bytes:
    """Valid messages one after the other, which protobuf merges."""
    return b"".join(_valid(rng) for _ in range(int(rng.integers(2, 20))))


# Frames of HTTP/2 (RFC 9113): length, type, flags, stream.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM, _END_HEADERS = 1, 4
_MOST_BYTES = 1 << 20


def _frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + content


def _headers(path: str, **more: bytes) -> bytes:
    """A header block of a gRPC call, every field a literal that is not indexed (RFC 7541, 6.2.2)."""

    def text(value: str | bytes) -> bytes:
        content = value if isinstance(value, bytes) else value.encode()
        assert len(content) < 127
        return bytes((len(content),)) + content

    fields: dict[str, str | bytes] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        **more,
    }
    return b"".join(b"\x00" + text(name) + text(value) for name, value in fields.items())


_HELLO = _PREFACE + _frame(_SETTINGS, 0, 0)


def opened() -> bytes:
    """What opens a connection."""
    return _HELLO


def opened_without_window() -> bytes:
    """What opens a connection whose caller lets no answer through."""
    return _PREFACE + _frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, 0))


def begun(stream: int, path: str = f"{R}Recommend") -> bytes:
    """A call on a stream of an open connection, of which no message has come yet."""
    return _frame(_HEADERS, _END_HEADERS, stream, _headers(path))


def watched(stream: int) -> bytes:
    """A call that watches the health of the whole server on a stream of an open connection."""
    return begun(stream, WATCH) + _frame(_DATA, _END_STREAM, stream, bytes(5))


def asked(stream: int, **headers: bytes) -> bytes:
    """A good Recommend call on a stream of an open connection, perhaps with headers that are not so good."""
    content = b"\x0a\x02u0"  # user_id: u0
    body = b"\x00" + struct.pack(">I", len(content)) + content
    call = _frame(_HEADERS, _END_HEADERS, stream, _headers(f"{R}Recommend", **headers))
    return call + _frame(_DATA, _END_STREAM, stream, body)


def _garbage(rng: np.random.Generator) -> Sequence[bytes]:
    return [rng.bytes(int(rng.integers(1, 5_000)))]


def _garbage_frames(rng: np.random.Generator) -> Sequence[bytes]:
    frames = [
        _frame(
            int(rng.integers(12)), int(rng.integers(256)), int(rng.integers(1 << 31)), rng.bytes(int(rng.integers(64)))
        )
        for _ in range(50)
    ]
    return [_HELLO, *frames]


def _other_protocol(rng: np.random.Generator) -> Sequence[bytes]:
    return [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00"]


def _huge_frame(rng: np.random.Generator) -> Sequence[bytes]:
    return [_HELLO, b"\xff\xff\xff" + bytes((_DATA, 0)) + struct.pack(">I", 1), bytes(20_000)]


def _huge_message(rng: np.random.Generator) -> Sequence[bytes]:
    """A message that is said to be 4 GiB long, and never comes."""
    return [_HELLO, begun(1), _frame(_DATA, 0, 1, b"\x00\xff\xff\xff\xff" + rng.bytes(100))]


def _rst_flood(rng: np.random.Generator) -> Sequence[bytes]:
    """Calls that are reset as soon as they begin (CVE-2023-44487)."""
    body = b"\x00" + struct.pack(">I", len(_VALID[0])) + _VALID[0]
    frames = []
    for stream in range(1, 401, 2):
        frames.append(begun(stream))
        if rng.random() < 0.5:
            frames.append(_frame(_DATA, _END_STREAM, stream, body))
        frames.append(_frame(_RST_STREAM, 0, stream, struct.pack(">I", 8)))
    return [_HELLO, b"".join(frames)]


def _ping_flood(rng: np.random.Generator) -> Sequence[bytes]:
    return [_HELLO, _frame(_PING, 0, 0, bytes(8)) * 500 + _frame(_SETTINGS, 0, 0) * 500]


def _no_window(rng: np.random.Generator) -> Sequence[bytes]:
    """A caller that lets no answer through: a window of nothing."""
    if rng.random() < 0.5:
        return [opened_without_window(), *(watched(stream) for stream in range(1, 9, 2))]
    call = begun(1, f"{R}StreamRecommend")
    body = b"\x00" + struct.pack(">I", len(_VALID[3])) + _VALID[3]
    return [opened_without_window(), call, _frame(_DATA, 0, 1, body * 50)]


def _half_closed(rng: np.random.Generator) -> Sequence[bytes]:
    """A call that begins and says no more."""
    return [_HELLO, begun(1, str(rng.choice([*UNARY, *STREAMS])))]


def _headers_that_are_no_text(rng: np.random.Generator) -> Sequence[bytes]:
    headers = {str(name): rng.bytes(20) for name in rng.choice(["authorization", "x-request-id", "traceparent"], 2)}
    return [_HELLO, asked(1, **headers)]


def _slow(rng: np.random.Generator) -> Sequence[bytes]:
    """A call that comes a few bytes at a time."""
    body = b"\x00" + struct.pack(">I", len(_VALID[0])) + _VALID[0]
    call = _HELLO + begun(1) + _frame(_DATA, _END_STREAM, 1, body)
    return [call[begin : begin + 5] for begin in range(0, len(call), 5)]


_BEHAVIOURS: tuple[Callable[[np.random.Generator], Sequence[bytes]], ...] = (
    *(_garbage, _garbage_frames, _other_protocol, _huge_frame, _huge_message, _rst_flood),
    *(_ping_flood, _no_window, _half_closed, _slow, _headers_that_are_no_text, lambda _: [_HELLO], lambda _: []),
)


def misbehave(address: str, rng: np.random.Generator) -> None:
    """Connects, behaves in some bad way, and leaves: in order, by a reset, or saying that no more will come."""
    host, _, port = address.rpartition(":")
    parts = _BEHAVIOURS[int(rng.integers(len(_BEHAVIOURS)))](rng)
    with socket.create_connection((host, int(port)), timeout=2) as connection, contextlib.suppress(OSError):
        for part in parts:
            connection.sendall(part)
            if len(parts) > 10:
                time.sleep(0.001)
        match int(rng.integers(3)):
            case 0:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case 1:
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(0.02)
                connection.recv(_MOST_BYTES)
            case _:
                connection.settimeout(0.02)
                connection.recv(_MOST_BYTES)
