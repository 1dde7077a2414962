"""What happens around every call: errors become statuses, and calls under way are counted."""

import functools
import logging
import threading
import uuid
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from shortlist_server.errors import QueryError
from shortlist_server.service.status import internal_error, status_of, to_grpc

log = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"
_MAX_REQUEST_ID = 128

Method = Callable[[Any, grpc.ServicerContext], Any]


class CallsUnderWay:
    """Counts calls, so that shutting down can wait for them."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def add(self, context: grpc.ServicerContext) -> None:
        """Counts a call until gRPC has sent its answer, which is later than its method returns."""
        with self._changed:
            self._count += 1
        if not context.add_callback(self._remove):
            self._remove()  # it has ended already

    def _remove(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait_for_none(self, timeout_seconds: float) -> bool:
        """Waits until no call is under way; says whether that came within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count == 0, timeout_seconds)


def guard(servicer: Any, service: ServiceDescriptor, under_way: CallsUnderWay) -> None:
    """Wraps every method of a servicer, before it is added to a server.

    An interceptor could do the same, but would wrap anew at every call.
    """
    for method in service.methods:
        setattr(servicer, method.name, _guarded(getattr(servicer, method.name), under_way))


def _guarded(method: Method, under_way: CallsUnderWay) -> Method:
    @functools.wraps(method)
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        under_way.add(context)
        try:
            return method(request, context)
        except QueryError as error:
            _abort(context, status_of(error))
        except Exception:  # the last resort: whatever it was, the caller gets a status and the log the rest
            request_id = _request_id(context)
            log.exception("%s failed, request id %s", method.__name__, request_id)
            _abort(context, internal_error(request_id))

    return answer


def _abort(context: grpc.ServicerContext, status: Any) -> NoReturn:
    context.abort_with_status(to_grpc(status))


def _request_id(context: grpc.ServicerContext) -> str:
    """The caller's own id where it is fit to be logged, or a new one."""
    given = dict(context.invocation_metadata()).get(REQUEST_ID_HEADER)
    if isinstance(given, str) and 0 < len(given) <= _MAX_REQUEST_ID and given.isprintable():
        return given
    return uuid.uuid4().hex
