"""Stands before every call of the ordinary server, reflection's too: strangers are refused before anything is read."""

from typing import TYPE_CHECKING, Any

import grpc

from shortlist_server.errors import PermissionDenied, Unauthenticated
from shortlist_server.service.guard import Guard, PlainCall

if TYPE_CHECKING:
    from collections.abc import Callable


class AccessInterceptor(grpc.ServerInterceptor):
    """Refuses calls that may not be made.

    How often they may be made is asked in service/guard.py, which knows what they ask for.

    Args:
        guard: has the gate, which decides.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._gate = guard.gate

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The method's own handler, or one that refuses."""
        try:
            self._gate.authorize(handler_call_details.method, handler_call_details.invocation_metadata)
        except (Unauthenticated, PermissionDenied) as error:
            return self._refusing(error, handler_call_details.method)
        return continuation(handler_call_details)

    def _refusing(self, error: Unauthenticated | PermissionDenied, path: str) -> "grpc.RpcMethodHandler[Any, Any]":
        def refuse(_messages: Any, context: grpc.ServicerContext) -> Any:
            told: Exception
            call = PlainCall(context)
            try:
                told = self._gate.refusal(error, path, context)
            except Exception as unforeseen:  # noqa: BLE001 # which the log is told of and the caller is not
                told = unforeseen
            context.abort_with_status(self._guard.refusal(told, path.rpartition("/")[2], call))

        # Whatever the method is, a stream is answered without waiting for its first message, which may never come.
        return grpc.stream_stream_rpc_method_handler(refuse)
