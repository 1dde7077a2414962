"""The blocking and the asyncio client: the same methods, made of the same calls."""

import copy
import functools
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc
import grpc.aio

from shortlist.v1 import recommender_pb2
from shortlist_client import model_rpcs, rpcs
from shortlist_client.channel import Connection
from shortlist_client.errors import error_of
from shortlist_client.rpcs import Rpc
from shortlist_client.streams import Answered, Asked, Sent, answered

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_TIMEOUT_SECONDS = 2.0


def _blocking(rpc: Rpc[P, Any, Any, T]) -> "Callable[Concatenate[Client, P], T]":
    def call(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        request = rpc.request(*args, **kwargs)
        try:
            return rpc.result(
                self._methods[rpc.path](request, timeout=self._timeout_seconds, metadata=self._connection.metadata)
            )
        except grpc.RpcError as failed:
            raise error_of(failed) from failed

    functools.update_wrapper(call, rpc.request)
    return call


def _awaitable(rpc: Rpc[P, Any, Any, T]) -> "Callable[Concatenate[AsyncClient, P], Awaitable[T]]":
    async def call(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        request = rpc.request(*args, **kwargs)
        try:
            return rpc.result(
                await self._methods[rpc.path](
                    request, timeout=self._timeout_seconds, metadata=self._connection.metadata
                )
            )
        except grpc.RpcError as failed:
            raise error_of(failed) from failed

    functools.update_wrapper(call, rpc.request)
    return call


_RPCS: tuple[Rpc[..., Any, Any, Any], ...] = (
    rpcs.RECOMMEND,
    rpcs.BATCH_RECOMMEND,
    rpcs.SIMILAR_ITEMS,
    rpcs.SCORE,
    rpcs.LIST_CLUSTERS,
    rpcs.GET_CLUSTER,
    model_rpcs.LIST_MODELS,
    model_rpcs.GET_MODEL,
    model_rpcs.LOAD_MODEL,
    model_rpcs.UNLOAD_MODEL,
    model_rpcs.SET_LABEL,
)


def _methods(channel: Any) -> dict[str, Callable[..., Any]]:
    return {
        rpc.path: channel.unary_unary(
            rpc.path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=rpc.response_type.FromString,
        )
        for rpc in _RPCS
    }


def _stream(channel: Any) -> Callable[..., Any]:
    stream: Callable[..., Any] = channel.stream_stream(
        rpcs.STREAM_RECOMMEND_PATH,
        request_serializer=recommender_pb2.StreamRecommendRequest.SerializeToString,
        response_deserializer=recommender_pb2.StreamRecommendResponse.FromString,
    )
    return stream


class Client:
    """Asks a Shortlist server. Safe to share between threads; make one and keep it.

    Args:
        target: HOST:PORT, or any gRPC target.
        timeout_seconds: the deadline of each call, its retries included.
        credentials: for TLS; None for a plain connection.
        server_name: the name in the server's certificate, where it is not the one in the target.
        token: the bearer token of every call; None for none.
        token_in_the_clear: the token may go to another machine without TLS, where something else protects it.

    Raises:
        ValueError: the token would be sent where others can read it, or no header can hold it.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str | None = None,
        token: str | None = None,
        token_in_the_clear: bool = False,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._connection = Connection(target, credentials, server_name, token, token_in_the_clear)
        self._channel = self._connection.open()
        self._methods = _methods(self._channel)
        self._stream = _stream(self._channel)

    recommend = _blocking(rpcs.RECOMMEND)
    batch_recommend = _blocking(rpcs.BATCH_RECOMMEND)
    similar_items = _blocking(rpcs.SIMILAR_ITEMS)
    score = _blocking(rpcs.SCORE)
    list_clusters = _blocking(rpcs.LIST_CLUSTERS)
    get_cluster = _blocking(rpcs.GET_CLUSTER)
    list_models = _blocking(model_rpcs.LIST_MODELS)
    get_model = _blocking(model_rpcs.GET_MODEL)
    load_model = _blocking(model_rpcs.LOAD_MODEL)
    unload_model = _blocking(model_rpcs.UNLOAD_MODEL)
    set_label = _blocking(model_rpcs.SET_LABEL)
    server_status = _blocking(model_rpcs.SERVER_STATUS)

    def stream_recommend(self, requests: Iterable[Asked]) -> Generator[Answered, None, None]:
        """Asks for each request as it comes and yields each answer as it is ready, in any order.

        There is no deadline: the stream ends with its requests, or when the generator is closed.

        Args:
            requests: (id, request) pairs; the id is the caller's own and comes back with the answer, and
                ``recommend_request`` makes requests. Another thread takes them, no faster than the server answers.

        Returns:
            Generator of (id, Recommendations), or of (id, the ShortlistError that ``recommend`` would have raised).

        Raises:
            ShortlistError: what failed is the stream; see shortlist_client.errors.
            Exception: whatever the requests raised, once those before are answered.
        """
        sent = Sent()
        call = self._stream(sent.messages(requests), metadata=self._connection.metadata)
        try:
            for message in call:
                yield answered(message)
        except grpc.RpcError as failed:
            raise error_of(failed) from failed
        finally:
            call.cancel()
        sent.end()

    def with_timeout(self, seconds: float) -> Self:
        """A client with another deadline over the same connection."""
        other = copy.copy(self)
        other._timeout_seconds = seconds
        return other

    def close(self) -> None:
        """Closes the connection, which clients made by ``with_timeout`` share."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """Asks a Shortlist server from asyncio: the methods of ``Client``, to be awaited.

    Args:
        target: HOST:PORT, or any gRPC target.
        timeout_seconds: the deadline of each call, its retries included.
        credentials: for TLS; None for a plain connection.
        server_name: the name in the server's certificate, where it is not the one in the target.
        token: the bearer token of every call; None for none.
        token_in_the_clear: the token may go to another machine without TLS, where something else protects it.

    Raises:
        ValueError: the token would be sent where others can read it, or no header can hold it.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str | None = None,
        token: str | None = None,
        token_in_the_clear: bool = False,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._connection = Connection(target, credentials, server_name, token, token_in_the_clear)
        self._channel = self._connection.open_async()
        self._methods = _methods(self._channel)
        self._stream = _stream(self._channel)

    recommend = _awaitable(rpcs.RECOMMEND)
    batch_recommend = _awaitable(rpcs.BATCH_RECOMMEND)
    similar_items = _awaitable(rpcs.SIMILAR_ITEMS)
    score = _awaitable(rpcs.SCORE)
    list_clusters = _awaitable(rpcs.LIST_CLUSTERS)
    get_cluster = _awaitable(rpcs.GET_CLUSTER)
    list_models = _awaitable(model_rpcs.LIST_MODELS)
    get_model = _awaitable(model_rpcs.GET_MODEL)
    load_model = _awaitable(model_rpcs.LOAD_MODEL)
    unload_model = _awaitable(model_rpcs.UNLOAD_MODEL)
    set_label = _awaitable(model_rpcs.SET_LABEL)
    server_status = _awaitable(model_rpcs.SERVER_STATUS)

    async def stream_recommend(
        self, requests: AsyncIterable[Asked] | Iterable[Asked]
    ) -> AsyncGenerator[Answered, None]:
        """As of ``Client``, for ``async for``; a task takes the requests, which may come of an asynchronous generator.

        Leaving the loop early leaves the stream open until the generator is closed: see ``contextlib.aclosing``.

        Args:
            requests: (id, request) pairs; the id is the caller's own and comes back with the answer.

        Returns:
            Generator of (id, Recommendations), or of (id, the ShortlistError that ``recommend`` would have raised).

        Raises:
            ShortlistError: what failed is the stream; see shortlist_client.errors.
            Exception: whatever the requests raised, once those before are answered.
        """
        sent = Sent()
        call = self._stream(sent.messages_async(requests), metadata=self._connection.metadata)
        try:
            async for message in call:
                yield answered(message)
        except grpc.RpcError as failed:
            raise error_of(failed) from failed
        finally:
            call.cancel()
        sent.end()

    def with_timeout(self, seconds: float) -> Self:
        """A client with another deadline over the same connection."""
        other = copy.copy(self)
        other._timeout_seconds = seconds
        return other

    async def close(self) -> None:
        """Closes the connection, which clients made by ``with_timeout`` share."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
