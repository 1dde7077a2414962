"""What happens around every call: errors become statuses, and calls under way are counted."""

import logging
import threading
import uuid
from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from shortlist_server.errors import QueryError
from shortlist_server.service.status import internal_error, status_of, to_grpc

log = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"
_MAX_REQUEST_ID = 128

Behavior = Callable[[Any, grpc.ServicerContext], Any]


class CallsUnderWay:
    """Counts calls, so that shutting down can wait for them."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait_for_none(self, timeout_seconds: float) -> bool:
        """Waits until no call is under way; says whether that came within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count == 0, timeout_seconds)


class CallScope(grpc.ServerInterceptor):
    """Wraps every call of Shortlist's own services."""

    def __init__(self, under_way: CallsUnderWay) -> None:
        self._under_way = under_way

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Wraps the handler that the call would have gone to."""
        handler = continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/shortlist."):
            return handler
        method, headers = handler_call_details.method, handler_call_details.invocation_metadata
        wrap: Callable[..., grpc.RpcMethodHandler[Any, Any]] = grpc.unary_unary_rpc_method_handler
        behavior: Behavior | None = handler.unary_unary
        if behavior is None:
            wrap, behavior = grpc.stream_stream_rpc_method_handler, handler.stream_stream
        assert behavior is not None  # the contract has no other kind of method
        return wrap(
            self._scoped(behavior, method, dict(headers)), handler.request_deserializer, handler.response_serializer
        )

    def _scoped(self, behavior: Behavior, method: str, headers: dict[str, str | bytes]) -> Behavior:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            with self._under_way:
                try:
                    return behavior(request, context)
                except QueryError as error:
                    _abort(context, status_of(error))
                except Exception:
                    request_id = _request_id(headers)
                    log.exception("%s failed, request id %s", method, request_id)
                    _abort(context, internal_error(request_id))

        return answer


def _abort(context: grpc.ServicerContext, status: Any) -> NoReturn:
    context.abort_with_status(to_grpc(status))


def _request_id(headers: dict[str, str | bytes]) -> str:
    """The caller's own id where it is fit to be logged, or a new one."""
    given = headers.get(REQUEST_ID_HEADER)
    if isinstance(given, str) and 0 < len(given) <= _MAX_REQUEST_ID and given.isprintable():
        return given
    return uuid.uuid4().hex
