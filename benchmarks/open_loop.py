"""Unary gRPC calls at times that were fixed beforehand, over plain HTTP/2, and how late each answer came.

Callers do not wait for one another: a call that is due goes out whatever has not been answered, and its latency counts
from when it was due, so that a server that stands still for a moment answers for all who came meanwhile ("coordinated
omission"). h2load cannot: its clock has ticks of a millisecond or more. grpcio's client takes as long for a call as the
server does. So the few frames that a call needs (RFC 9113, RFC 7541) are put together here, once, and a call costs a
twentieth of a millisecond or less.
"""

import gc
import select
import socket
import struct
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_WINDOW_UPDATE = 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_LARGEST_WINDOW = (1 << 31) - 1
_FIRST_WINDOW = (1 << 16) - 1
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Answered:
    """What became of the calls.

    Attributes:
        seconds: (n,) from when each call was due to the end of its answer.
        lateness: (n,) by how much the generator sent each too late, which is part of ``seconds``.
    """

    seconds: FloatArray
    lateness: FloatArray


def due_times(rate: float, count: int, seed: int | None) -> FloatArray:
    """(count,) seconds from the start: evenly spaced, or of a Poisson process drawn by a seed."""
    if seed is None:
        return np.arange(count) / rate
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def call_at(address: str, method: str, request: bytes, due: FloatArray, connections: int = 4) -> Answered:
    """Calls a method at the given times, turn by turn over some connections, and waits for all answers.

    The process keeps its core busy throughout: a sleeping one would wake up late.

    Args:
        address: HOST:PORT.
        method: "/package.Service/Method".
        request: of every call, serialized.
        due: (n,) seconds from the start, ascending.
        connections: how many.

    Raises:
        ConnectionError: a call failed, or was not answered within ten seconds after the last was due.
    """
    peers = [_Connection(address, method, request) for _ in range(connections)]
    by_socket = {peer.socket.fileno(): peer for peer in peers}
    poll = select.epoll()
    for number in by_socket:
        poll.register(number, select.EPOLLIN)
    times = due.tolist()
    sent, ended = [0.0] * len(times), [0.0] * len(times)
    clock, place, open_calls = time.perf_counter, 0, 0
    gc.collect()
    gc.disable()
    try:
        start = clock() + 0.05
        give_up = times[-1] + _PATIENCE_SECONDS
        while place < len(times) or open_calls:
            now = clock() - start
            if place < len(times) and times[place] <= now:
                peers[place % connections].call(place)
                sent[place] = now
                place += 1
                open_calls += 1
            for number, _ in poll.poll(0):
                for answered in by_socket[number].answers():
                    ended[answered] = clock() - start
                    open_calls -= 1
            if now > give_up:
                raise ConnectionError(f"{open_calls} calls were not answered")
    finally:
        gc.enable()
        poll.close()
        for peer in peers:
            peer.socket.close()
    return Answered(np.array(ended) - due, np.array(sent) - due)


class _Connection:
    """An HTTP/2 connection on which all calls are alike."""

    def __init__(self, address: str, method: str, request: bytes) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fields = {":method": "POST", ":scheme": "http", ":path": method, ":authority": address}
        fields |= {"content-type": "application/grpc", "te": "trailers"}
        # Neither indexed nor compressed, so that the same bytes serve for every call.
        self._headers = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
        self._message = b"\0" + struct.pack(">I", len(request)) + request
        self._stream = 1
        self._calls: dict[int, int] = {}  # stream to call
        self._answered: set[int] = set()  # streams with a message
        self._rest = b""
        window = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
        self.socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, window)
            + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST_WINDOW - _FIRST_WINDOW))
        )

    def call(self, number: int) -> None:
        """Sends the next call, which ``answers`` will name by this number."""
        self._calls[self._stream] = number
        self.socket.sendall(
            _frame(_HEADERS, _END_HEADERS, self._stream, self._headers)
            + _frame(_DATA, _END_STREAM, self._stream, self._message)
        )
        self._stream += 2

    def answers(self) -> list[int]:
        """The calls whose answers end in what has come; the socket must have something.

        A call that failed has no message, only headers, so that their compressed status need not be read.
        """
        received = self.socket.recv(1 << 18)
        if not received:
            raise ConnectionError("the server closed the connection")
        content = self._rest + received
        done = []
        at = 0
        while len(content) - at >= 9:
            length = int.from_bytes(content[at : at + 3], "big")
            if len(content) - at - 9 < length:
                break
            kind, flags = content[at + 3], content[at + 4]
            stream = int.from_bytes(content[at + 5 : at + 9], "big")
            payload = content[at + 9 : at + 9 + length]
            at += 9 + length
            if kind == _DATA and length:
                self._answered.add(stream)
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self.socket.sendall(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
            elif kind in (_RST_STREAM, _GOAWAY):
                raise ConnectionError("the server refused a call")
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                if stream not in self._answered:
                    raise ConnectionError("a call failed")
                self._answered.remove(stream)
                done.append(self._calls.pop(stream))
        self._rest = content[at:]
        return done


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def _text(text: str) -> bytes:
    """A string literal of a header, which is short."""
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()
