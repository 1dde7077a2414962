"""The handlers of an ordinary grpc.server, one thread a call: what generated code leaves out."""

import functools
from collections.abc import Container, Iterator, Mapping
from concurrent import futures
from typing import Any

import grpc

from shortlist_server.errors import MalformedRequest
from shortlist_server.service import silence
from shortlist_server.service.silence import Silence
from shortlist_server.service.status import status_of, to_grpc
from shortlist_server.service.wire import serialized

_NAMES = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


class PlainLane:
    """A server as generated code registers services with it.

    Some methods are left out, which the other lane answers, as both would claim them. Answers may be written already.
    Requests that are not of their message are refused: by itself grpc.server says INTERNAL and logs a traceback, so
    that whoever sends noise fills the log. And it waits for a request as long as the caller likes, on a thread.

    Args:
        server: the server itself, which has not been started.
        silence: looks after the calls whose request has not come.
        left_out: paths of methods that it shall not have.
        probes: services that are asked for a few bytes, each with threads of its own.
    """

    def __init__(
        self,
        server: grpc.Server,
        silence: Silence,
        left_out: Container[str] = (),
        probes: Mapping[str, futures.ThreadPoolExecutor] | None = None,
    ) -> None:
        self._server = server
        self._silence = silence
        self._left_out = left_out
        self._probes = probes or {}

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """As ``grpc.Server`` does."""
        kept = {
            name: self._handler(handler, self._probes.get(service))
            for name, handler in handlers.items()
            if f"/{service}/{name}" not in self._left_out
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, kept),))
        self._server.add_registered_method_handlers(service, kept)

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Nothing: what generated code passes here cannot be divided, and comes once more by name."""

    def _handler(self, handler: Any, pool: futures.ThreadPoolExecutor | None) -> Any:
        behaviour = getattr(handler, _NAMES[handler.request_streaming, handler.response_streaming])
        silent_seconds = silence.SILENT_SECONDS if pool is None else silence.SILENT_PROBE_SECONDS
        guarded, deserialize = getattr(behaviour, "guarded", False), handler.request_deserializer

        def read(content: bytes) -> Any:
            try:
                return deserialize(content)
            except Exception:  # noqa: BLE001 # whatever protobuf has against it
                return MalformedRequest()

        @functools.wraps(behaviour)  # gRPC's health service says by attributes how it is to be called
        def answer(requests: Iterator[Any], context: grpc.ServicerContext, *more: Any) -> Any:
            request = self._silence.first(requests, context, silent_seconds)
            if request is None:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "the call needs one request message")
            if isinstance(request, MalformedRequest) and not guarded:
                context.abort_with_status(to_grpc(status_of(request)))
            return behaviour(request, context, *more)

        @functools.wraps(behaviour)
        def answer_stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return behaviour(_readable(requests) if guarded else _until_malformed(requests, context), context)

        # To grpc.server all requests are streams: of such a call it tells before the first has come.
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        answering: Any = answer_stream if handler.request_streaming else answer
        if pool is not None:
            answering.experimental_thread_pool = pool
        return make(answering, read, serialized)


def _readable(requests: Iterator[Any]) -> Iterator[Any]:
    """The requests of a stream; raises MalformedRequest at the first that is not one."""
    for request in requests:
        if isinstance(request, MalformedRequest):
            raise request
        yield request


def _until_malformed(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
    """The requests of a stream, which a malformed one ends: those before it are answered, then comes the status."""
    for request in requests:
        if isinstance(request, MalformedRequest):
            status = to_grpc(status_of(request))
            context.set_code(status.code)
            context.set_details(status.details)
            return
        yield request
