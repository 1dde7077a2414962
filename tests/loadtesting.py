"""Bare servers to load."""

from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc

SERVICE = "shortlist.v1.RecommenderService"
RECOMMEND = f"/{SERVICE}/Recommend"

Load = Callable[..., tuple[int, dict[str, Any]]]
"""Takes an address and options of the command; gives its exit status and figures."""


@contextmanager
def answering(answer: Callable[[bytes], bytes], threads: int = 16, port: int = 0) -> Iterator[str]:
    """A bare server of Recommend that answers as told."""
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        lambda request, _: answer(request)
    )
    server = grpc.server(futures.ThreadPoolExecutor(threads))
    server.add_registered_method_handlers(SERVICE, {"Recommend": handler})
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
