"""A token goes only where nobody else can read it."""

import grpc
import pytest

from shortlist_client import AsyncClient, Client
from shortlist_client.channel import Connection, is_local

LOCAL = [
    "127.0.0.1:50051",
    "127.8.9.1:1",
    "localhost:50051",
    "localhost",
    "[::1]:50051",
    "::1",
    "dns:///localhost:50051",
    "dns:localhost:50051",
    "ipv4:127.0.0.1:50051",
    "ipv6:[::1]:50051",
    "unix:/run/shortlist",
    "unix:///run/shortlist",
    "unix-abstract:shortlist",
]
REMOTE = [
    "shop.example:50051",
    "192.0.2.1:50051",
    "0.0.0.0:50051",
    "[2001:db8::1]:50051",
    "2001:db8::1",
    "dns:///shop.example:50051",
    "dns://127.0.0.1/shop.example:50051",
    "ipv4:127.0.0.1:50051,192.0.2.1:50051",
    "localhost.example:1",
    "127.0.0.1.example:1",
    "xds:///localhost",
]


@pytest.mark.parametrize("target", LOCAL)
def test_what_stays_on_this_machine_is_known(target: str) -> None:
    assert is_local(target)
    assert Connection(target, token="t").metadata == (("authorization", "Bearer t"),)


@pytest.mark.parametrize("target", REMOTE)
def test_a_token_is_not_sent_in_the_clear_to_another_machine(target: str) -> None:
    assert not is_local(target)
    for client in (Client, AsyncClient):
        with pytest.raises(ValueError, match="without TLS, for everyone on the way to read"):
            client(target, token="t")
    assert Connection(target, grpc.ssl_channel_credentials(), token="t").metadata
    assert Connection(target, token="t", token_in_the_clear=True).metadata
    assert Connection(target).metadata == ()


@pytest.mark.parametrize("token", ["", " ", "a\nb", "é", " t", "t "])
def test_what_no_header_can_hold_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ValueError, match=r"printable ASCII without spaces around it$"):
        Connection("localhost:1", token=token)
