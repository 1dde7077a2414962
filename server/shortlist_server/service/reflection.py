"""What servers tell of themselves, to callers with the rights and at the rates of the others.

By reflection grpcurl and its like learn the contract; it is bounded, as each stream holds a thread. By channelz they
see connections.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from shortlist_server.admission import Admission
from shortlist_server.service.guard import Guard

_STREAMS = 4


class _Reflection(reflection.ReflectionServicer):  # type: ignore[misc]  # comes without types
    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._streams = Admission(_STREAMS, waiting=0)

    def ServerReflectionInfo(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        with self._streams.turn(None):
            yield from super().ServerReflectionInfo(request_iterator, context)


def add_reflection(server: grpc.Server, names: Sequence[str], guard: Guard) -> None:
    """Makes a server describe its services.

    Args:
        server: not started yet.
        names: of its services, without that of reflection.
        guard: says how often a caller may ask.
    """
    servicer = _Reflection((*names, reflection.SERVICE_NAME))
    service = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    # Whoever reflects is not waited for when the server stops.
    Guard(guard.gate).around(servicer, service)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)


def add_channelz(server: grpc.Server, guard: Guard) -> str:
    """Makes a server tell of its connections.

    Args:
        server: not started yet.
        guard: says how often a caller may ask.

    Returns:
        The service's name.
    """
    servicer, service = channelz.ChannelzServicer(), channelz_pb2.DESCRIPTOR.services_by_name["Channelz"]
    Guard(guard.gate).around(servicer, service)
    channelz_pb2_grpc.add_ChannelzServicer_to_server(servicer, server)
    name: str = service.full_name
    return name
