"""The handlers of an ordinary grpc.server, one thread a call: what generated code leaves out."""

import functools
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import grpc

from shortlist_server.errors import MalformedRequest
from shortlist_server.service.status import status_of, to_grpc
from shortlist_server.service.wire import serialized

_MAKERS: dict[tuple[bool, bool], tuple[str, Callable[..., Any]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class PlainLane:
    """A server as generated code registers services with it.

    Some methods are left out, which the other lane answers, as both would claim them. Answers may be written already.
    Requests that are not of their message are refused: by itself grpc.server says INTERNAL and logs a traceback, so
    that whoever sends noise fills the log.

    Args:
        server: the server itself, which has not been started.
        left_out: paths of methods that it shall not have.
    """

    def __init__(self, server: grpc.Server, left_out: Container[str] = ()) -> None:
        self._server = server
        self._left_out = left_out

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """As ``grpc.Server`` does."""
        kept = {
            name: _handler(handler) for name, handler in handlers.items() if f"/{service}/{name}" not in self._left_out
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, kept),))
        self._server.add_registered_method_handlers(service, kept)

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Nothing: what generated code passes here cannot be divided, and comes once more by name."""


def _handler(handler: Any) -> Any:
    name, make = _MAKERS[handler.request_streaming, handler.response_streaming]
    behaviour, deserialize = getattr(handler, name), handler.request_deserializer

    def read(content: bytes) -> Any:
        try:
            return deserialize(content)
        except Exception:  # noqa: BLE001 # whatever protobuf has against it
            return MalformedRequest()

    @functools.wraps(behaviour)  # gRPC's health service says by attributes how it is to be called
    def answer(request: Any, context: grpc.ServicerContext, *more: Any) -> Any:
        if isinstance(request, MalformedRequest) and not getattr(behaviour, "guarded", False):
            context.abort_with_status(to_grpc(status_of(request)))
        return behaviour(request, context, *more)

    @functools.wraps(behaviour)
    def answer_stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        return behaviour(_until_malformed(requests, context), context)

    return make(answer_stream if handler.request_streaming else answer, read, serialized)


def _until_malformed(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
    """The requests of a stream, which a malformed one ends: those before it are answered, then comes the status."""
    for request in requests:
        if isinstance(request, MalformedRequest):
            status = to_grpc(status_of(request))
            context.set_code(status.code)
            context.set_details(status.details)
            return
        yield request
