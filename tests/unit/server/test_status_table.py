"""Every error of the server has its row in the status table, and every status its exception in the client."""

import inspect

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import shortlist_client.errors as client_errors
from shortlist_server import errors
from shortlist_server.service.status import TABLE, ending_of, internal_error, status_of

EXAMPLES: list[tuple[errors.QueryError, grpc.StatusCode, str]] = [
    (errors.MalformedRequest(), grpc.StatusCode.INVALID_ARGUMENT, ""),
    (errors.MalformedRequest(), grpc.StatusCode.INVALID_ARGUMENT, ""),
    (errors.InvalidField("k", "too large"), grpc.StatusCode.INVALID_ARGUMENT, "google.rpc.BadRequest"),
    (errors.NotSupported("rerank"), grpc.StatusCode.UNIMPLEMENTED, ""),
    (errors.NoClusters(), grpc.StatusCode.UNIMPLEMENTED, ""),
    (errors.NoRanker(), grpc.StatusCode.UNIMPLEMENTED, ""),
    (errors.UserNotFound("u"), grpc.StatusCode.NOT_FOUND, "google.rpc.ResourceInfo"),
    (errors.ItemNotFound("i"), grpc.StatusCode.NOT_FOUND, "google.rpc.ResourceInfo"),
    (errors.ClusterNotFound("7", "there is no cluster 7"), grpc.StatusCode.NOT_FOUND, "google.rpc.ResourceInfo"),
    (errors.ModelNotFound("7", "there is no version 7"), grpc.StatusCode.NOT_FOUND, "google.rpc.ResourceInfo"),
    (errors.ServiceNotFound("s"), grpc.StatusCode.NOT_FOUND, "google.rpc.ResourceInfo"),
    (errors.FailedPrecondition("no"), grpc.StatusCode.FAILED_PRECONDITION, ""),
    (errors.ModelRefused(7, "items.faiss is missing"), grpc.StatusCode.FAILED_PRECONDITION, ""),
    (errors.VersionInUse(7, "bears the label stable"), grpc.StatusCode.FAILED_PRECONDITION, ""),
    (errors.StoreNotWritable("read-only file system"), grpc.StatusCode.FAILED_PRECONDITION, ""),
    (errors.ChoicesUnusable("store.json is damaged"), grpc.StatusCode.FAILED_PRECONDITION, ""),
    (errors.NoModelReady(), grpc.StatusCode.UNAVAILABLE, "google.rpc.RetryInfo"),
    (errors.LoadingStopped(), grpc.StatusCode.UNAVAILABLE, "google.rpc.RetryInfo"),
    (errors.QueueFull(0.05), grpc.StatusCode.RESOURCE_EXHAUSTED, "google.rpc.RetryInfo"),
    (errors.DeadlinePassed(), grpc.StatusCode.DEADLINE_EXCEEDED, ""),
    (errors.Unauthenticated(), grpc.StatusCode.UNAUTHENTICATED, ""),
    (errors.PermissionDenied("not this one"), grpc.StatusCode.PERMISSION_DENIED, ""),
    (errors.AdminOff(), grpc.StatusCode.PERMISSION_DENIED, ""),
    (errors.RateLimited(0.5, "too many"), grpc.StatusCode.RESOURCE_EXHAUSTED, "google.rpc.RetryInfo"),
]


def test_every_kind_of_error_is_among_the_examples() -> None:
    kinds = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.QueryError) and kind not in (errors.QueryError, errors.NotFound)
    }
    assert {type(example) for example, _, _ in EXAMPLES} == kinds


@pytest.mark.parametrize(("error", "code", "detail"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_an_error_has_its_code_and_details(error: errors.QueryError, code: grpc.StatusCode, detail: str) -> None:
    status = status_of(error)
    assert status.code == code.value[0]
    assert [packed.TypeName() for packed in status.details] == ([detail] if detail else [])


def test_who_is_refused_is_told_to_the_millisecond_when_to_come_again() -> None:
    def told(error: errors.QueryError) -> tuple[float, str]:
        ending = ending_of(error, "some-id")
        details, sent = error_details_pb2.RetryInfo(), dict(ending.trailing_metadata)
        status = status_pb2.Status.FromString(sent["grpc-status-details-bin"])
        assert status == status_of(error)
        assert status.details[0].Unpack(details)
        assert (ending.code, sent["x-request-id"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "some-id")
        assert ending.details == str(error)
        return details.retry_delay.ToMilliseconds(), ending.details

    full, limited = "too many requests are waiting", "too many; try again in {} s"
    for seconds, milliseconds in ((0.05, 50), (1.2344, 1_235), (5.0, 5_000), (0.05, 50)):
        assert told(errors.QueueFull(seconds)) == (milliseconds, full)
    for seconds, milliseconds, shown in ((0.0001, 1, "0.01"), (1.25, 1_250, "1.2"), (1.21, 1_210, "1.2")):
        assert told(errors.RateLimited(seconds, "too many")) == (milliseconds, limited.format(shown))
    assert told(errors.RateLimited(1.21, "other")) == (1_210, "other; try again in 1.2 s")


def test_every_status_of_the_server_has_an_exception_of_the_client() -> None:
    codes = {code for code, _ in TABLE.values()} | {grpc.StatusCode.INTERNAL}
    assert codes <= set(client_errors.TABLE)


def test_an_internal_error_tells_nothing_but_the_request_id() -> None:
    status = internal_error("abc")
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert status.message == "internal error; the server's log tells more under request id abc"


def test_a_long_id_of_a_caller_is_cut_in_messages() -> None:
    assert len(status_of(errors.UserNotFound("x" * 512)).message) < 120
