"""Entries of a StreamRecommend call that stays open, each of which is answered by itself."""

import itertools
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from shortlist.v1 import recommender_pb2
from shortlist_client.loadtest.calls import Done, tell
from shortlist_client.loadtest.connection import Target, open_channel
from shortlist_client.loadtest.tally import LATE, OK, WRONG_ANSWER
from shortlist_client.loadtest.verify import outcome_status
from shortlist_client.loadtest.workload import PATHS, Kind

_LOOK_SECONDS = 0.1


class Stream:
    """A stream on a connection of its own; one that breaks fails what is waiting and is opened again.

    Args:
        target: the server.
        timeout_seconds: of an entry; gRPC knows only deadlines of whole streams.
    """

    def __init__(self, target: Target, timeout_seconds: float) -> None:
        self._channel = open_channel(target)
        self._metadata = target.metadata or None
        self._method: Any = self._channel.stream_stream(PATHS[Kind.STREAM])
        self._timeout_seconds = timeout_seconds
        self._ids = itertools.count()
        self._waiting: dict[str, tuple[float, Done]] = {}  # by entry: when it times out
        self._lock = threading.Lock()
        self._entries: queue.SimpleQueue[bytes | None] | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._expire, name="stream deadlines", daemon=True).start()

    def start(self, message: bytes, done: Done) -> None:
        """Sends an entry and returns at once.

        Args:
            message: a StreamRecommendRequest without its id.
            done: called on another thread; its answer is a StreamRecommendResponse.
        """
        request_id = str(next(self._ids))
        # Messages that follow one another are read as one.
        entry = message + recommender_pb2.StreamRecommendRequest(request_id=request_id).SerializeToString()
        with self._lock:
            self._waiting[request_id] = time.perf_counter() + self._timeout_seconds, done
            if self._entries is None:
                self._open()
            assert self._entries is not None
            self._entries.put(entry)

    def close(self) -> None:
        """Ends the stream and the connection."""
        self._closed.set()
        with self._lock:
            if self._entries is not None:
                self._entries.put(None)
        self._channel.close()

    def _open(self) -> None:
        entries: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

        def sent() -> Iterator[bytes]:
            while (entry := entries.get()) is not None:
                yield entry

        self._entries = entries
        answers = self._method(sent(), metadata=self._metadata)
        threading.Thread(target=self._read, args=(answers, entries), name="stream", daemon=True).start()

    def _read(self, answers: Any, entries: "queue.SimpleQueue[bytes | None]") -> None:
        status, details = "UNKNOWN", "the server ended the stream"
        try:
            for message in answers:
                answer = recommender_pb2.StreamRecommendResponse.FromString(message)
                with self._lock:
                    _, done = self._waiting.pop(answer.request_id, (0.0, None))
                if done is None:
                    continue  # it has timed out
                outcome, why = outcome_status(answer.outcome)
                tell(done, outcome, message if outcome == OK else b"", why)
        except grpc.RpcError as failed:
            call: grpc.Call = failed  # type: ignore[assignment]  # every error a call raises is a call
            status, details = call.code().name, call.details() or ""
        except DecodeError as error:
            # Which entry it was to answer cannot be told, and whoever reads a stream is not sure of its rest.
            status, details = WRONG_ANSWER, f"a message of the stream is no answer: {error}"
            answers.cancel()
        entries.put(None)
        with self._lock:
            if self._entries is entries:
                self._entries = None
            broken, self._waiting = self._waiting, {}
        for _, done in broken.values():
            tell(done, status, b"", details)

    def _expire(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            now = time.perf_counter()
            with self._lock:
                late = [request_id for request_id, (end, _) in self._waiting.items() if end < now]
                passed = [self._waiting.pop(request_id)[1] for request_id in late]
            for done in passed:
                tell(done, LATE, b"", "no answer to the entry in time")
