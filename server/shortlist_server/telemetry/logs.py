"""Log lines: as text or as JSON, and those about requests, so many a second at most."""

import atexit
import contextlib
import json
import logging
import logging.handlers
import queue
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from shortlist_server.errors import MalformedRequest

log = logging.getLogger(__name__)

FORMATS = ("text", "json")
_TEXT = "%(asctime)s %(levelname)s %(message)s"

REQUEST_ID_HEADER = "x-request-id"
_MAX_REQUEST_ID = 128

TURNED_AWAY = frozenset(
    {"DEADLINE_EXCEEDED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "UNAVAILABLE"}
)
"""The statuses of calls that were refused before any work."""

_LINES_KEPT = 10_000
_LAST_LINES_SECONDS = 1.0

_TRACING_CHARACTERS = 200

LINES_A_SECOND = 10
"""Of one kind. A server that fails or is slow for everybody must not drown in saying so."""


def log_to_stderr(form: str = "text") -> None:
    """Sends the log lines of this process to stderr, by a thread of its own.

    Args:
        form: "text" or "json", one object a line.
    """
    handler = AsideHandler(sys.stderr)
    atexit.register(handler.finish)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_TEXT))
    handler.addFilter(_BoundedTracing())  # a logger's own filters do not see what those below it say
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_callers_header)


def finish_log() -> None:
    """Waits a moment for what has been logged to be written."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, AsideHandler):
            handler.finish()


class AsideHandler(logging.handlers.QueueHandler):
    """Has a thread write lines: whoever is to read them may stand still, and a pipe that is full stops who writes.

    Of lines that nobody takes so many are kept; the others are counted.

    Args:
        stream: where lines go to.
    """

    def __init__(self, stream: TextIO) -> None:
        # What is logged while the collector frees something may come in the midst of anything, here and in the thread
        # that writes: whoever holds the handler's own lock may wait for no other.
        self._lines: queue.SimpleQueue[logging.LogRecord | threading.Event] = queue.SimpleQueue()
        super().__init__(self._lines)
        self._stream = stream
        self._left_out = 0  # ever; changed under the handler's lock alone
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Keeps a line, or counts it where too many are kept."""
        if self._lines.qsize() < _LINES_KEPT:
            self._lines.put(record)
        else:
            self._left_out += 1

    def finish(self) -> None:
        """Waits until all lines are written, or a moment where nobody takes them."""
        written = threading.Event()
        self._lines.put(written)
        written.wait(_LAST_LINES_SECONDS)

    def _write(self) -> None:
        told = written = 0
        while True:
            line = self._lines.get()
            if not isinstance(line, threading.Event):
                self._put(line.getMessage())
            left_out = self._left_out - told
            written = written + 1 if left_out else 0
            if left_out and (self._lines.empty() or written > _LINES_KEPT):  # where they would have stood
                told, written = told + left_out, 0
                self._put(self.format(_warning(f"{left_out} lines were left out, as nobody took those before them")))
            if isinstance(line, threading.Event):
                line.set()

    def _put(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # whoever read it is gone
            self._stream.write(f"{line}\n")
            self._stream.flush()


def _warning(message: str) -> logging.LogRecord:
    return log.makeRecord(log.name, logging.WARNING, __file__, 0, message, (), None)


def _is_no_callers_header(record: logging.LogRecord) -> bool:
    """False of what gRPC says, with a traceback each, of headers that are no text: a stranger's, or a token."""
    return not str(record.msg).startswith("Invalid encoding")


class _BoundedTracing(logging.Filter):
    """Bounds what OpenTelemetry says of the headers of calls, whose text is a stranger's: lines, and their length."""

    def __init__(self) -> None:
        super().__init__()
        self._limits: dict[str, _Limit] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """False of a line too many; of others it makes one line that ends nowhere else."""
        if record.name.partition(".")[0] != "opentelemetry":
            return True
        # Each with its own limit, that what strangers cause hides nothing that the exporter says.
        if not self._limits.setdefault(record.name, _Limit(record.name)).allows():
            return False
        text = record.getMessage()
        text = text if len(text) <= _TRACING_CHARACTERS else f"{text[:_TRACING_CHARACTERS]}…"
        record.msg, record.args = text if text.isprintable() else repr(text), None
        return True


class JsonFormatter(logging.Formatter):
    """A log line as one JSON object: time, level, logger, message, and what is known of the request."""

    def format(self, record: logging.LogRecord) -> str:
        """The object, in one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "request", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def request_id_of(metadata: Iterable[tuple[str, str | bytes]] = ()) -> str:
    """The caller's own id of a request where it is fit to be logged and sent back in a header, or a new one."""
    given = dict(metadata or ()).get(REQUEST_ID_HEADER)
    if isinstance(given, str) and 0 < len(given) <= _MAX_REQUEST_ID and given.isascii() and given.isprintable():
        return given
    return uuid.uuid4().hex


@dataclass(slots=True)
class EndedCall:
    """A call that is over, as it is logged and traced.

    Attributes:
        method: the RPC.
        code: the gRPC status by name.
        request_id: the caller's own or one that was made up.
        arrived: when it came, by ``time.perf_counter``.
        started: when its first batch began; None when it never did.
        ended: when it was answered.
        metadata: the caller's.
        error: why it failed; None when it did not.
        messages: those of a stream that were answered; None where it was none.
    """

    method: str
    code: str
    request_id: str
    arrived: float
    started: float | None
    ended: float
    metadata: Iterable[tuple[str, str | bytes]] = ()
    error: Exception | None = None
    messages: int | None = None


def _is_noise(call: EndedCall) -> bool:
    """Whether its message never came, or is none: how long that took is the caller's doing."""
    return isinstance(call.error, MalformedRequest)


class RequestLog:
    """Log lines about requests.

    Args:
        slow_seconds: calls that take at least so long are logged, but for streams; 0 for none.
        every_call: all others as well, without a limit.
    """

    def __init__(self, slow_seconds: float, *, every_call: bool) -> None:
        self._slow_seconds = slow_seconds or float("inf")
        self._every_call = every_call
        self._limits = {what: _Limit(what) for what in ("internal errors", "failed requests", "slow requests")}

    def concerns(self, seconds: float) -> bool:
        """Whether a call that did not fail and took so long is worth a line."""
        return self._every_call or seconds >= self._slow_seconds

    def ended(self, call: EndedCall) -> None:
        """Says that a call is over, where that is worth a line."""
        if call.code == "INTERNAL":  # each with its own limit, that none hides the others
            self._say(logging.ERROR, call, "internal errors")
        elif call.code in TURNED_AWAY:  # callers' other mistakes are counted alone
            self._say(logging.WARNING, call, "failed requests")
        elif call.messages is None and call.ended - call.arrived >= self._slow_seconds and not _is_noise(call):
            self._say(logging.WARNING, call, "slow requests", "slow: ")
        elif self._every_call:
            self._say(logging.INFO, call)

    def entry_failed(self, entry: EndedCall) -> None:
        """Says why a request of many failed, where that is this side's fault: its call has a line of its own."""
        if entry.code == "INTERNAL" and self._limits["internal errors"].allows():
            self._say(logging.ERROR, entry)

    def flush(self) -> None:
        """Says how many lines were left out; to be called every second."""
        for limit in self._limits.values():
            if left_out := limit.renew():
                log.warning("%d more lines about %s were left out", left_out, limit.what)

    def _say(self, level: int, call: EndedCall, limited: str | None = None, before: str = "") -> None:
        if limited is not None and not self._every_call and not self._limits[limited].allows():
            return
        milliseconds = (call.ended - call.arrived) * 1e3
        request: dict[str, object] = {
            "request_id": call.request_id,
            "method": call.method,
            "status": call.code,
            "ms": round(milliseconds, 3),
        }
        more = ""
        if call.started is not None:
            request["queued_ms"] = round((call.started - call.arrived) * 1e3, 3)
            more = f", {request['queued_ms']:.1f} of them queued"
        if call.messages is not None:
            request["messages"] = call.messages
            more = f", messages answered: {call.messages:,}"
        why = f": {call.error}" if call.error is not None and call.code != "INTERNAL" else ""
        log.log(
            level,
            "%s%s ended with %s after %.1f ms%s, request id %s%s",
            *(before, call.method, call.code, milliseconds, more, call.request_id, why),
            exc_info=call.error if call.code == "INTERNAL" else None,
            extra={"request": request},
        )


class _Limit:
    """So many lines a second."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._lock = threading.Lock()
        self._second = 0
        self._said = 0
        self._left_out = 0

    def allows(self) -> bool:
        """Whether one more line may be said now; counts it either way."""
        with self._lock:
            second = int(time.monotonic())
            if second != self._second:
                self._second, self._said = second, 0
            allowed = self._said < LINES_A_SECOND
            self._said += allowed
            self._left_out += not allowed
            return allowed

    def renew(self) -> int:
        """How many lines were left out since this was last asked."""
        with self._lock:
            left_out, self._left_out = self._left_out, 0
            return left_out
