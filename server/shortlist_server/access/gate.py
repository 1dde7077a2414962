"""Lets a call in or says why not: who calls, whether they may, and whether they have called too often."""

import ipaddress
import logging
import threading
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import unquote

from shortlist_server.access.config import AccessConfig
from shortlist_server.access.rates import BoundedLog, Rates
from shortlist_server.access.tokens import Scope, Token, read_tokens
from shortlist_server.access.watched import Watched
from shortlist_server.errors import AdminOff, PermissionDenied, QueryError, RateLimited, Unauthenticated, shown

log = logging.getLogger(__name__)

_MODELS = "/shortlist.v1.ModelService/"
ADMIN_METHODS = frozenset({f"{_MODELS}LoadModel", f"{_MODELS}UnloadModel", f"{_MODELS}SetLabel"})
"""All others are for readers, those of servers to come among them: nothing is open because it was forgotten."""

OPEN_SERVICE = "/grpc.health.v1.Health/"
"""Load balancers and supervisors ask it, and it tells nothing but whether there is a model."""

_LOOK_SECONDS = 1.0
_FAILURES_PER_SECOND = 1.0
_FAILURES_AT_ONCE_SECONDS = 10.0
_NETWORK_BITS = 64
_LOGGED_CHARACTERS = 200

Metadata = Iterable[tuple[str, str | bytes]]


class Peer(Protocol):
    """Who is at the other end of a call, as ``grpc.ServicerContext`` tells it."""

    def invocation_metadata(self) -> Metadata:
        """What the caller says of the call."""

    def peer(self) -> str:
        """The address, such as "ipv4:127.0.0.1:4711"."""

    def peer_identities(self) -> Iterable[bytes] | None:
        """The names in the client's certificate, if there is one."""


class Gate:
    """Decides about every call of a server.

    Args:
        config: what the operator has chosen.
        admin: whether the admin methods are on.

    Raises:
        OSError, ValueError: the tokens file cannot be read.
    """

    def __init__(self, config: AccessConfig, *, admin: bool) -> None:
        self._admin = admin
        self._rate = config.rate_limit
        self._tokens = None
        if config.tokens is not None:
            path = config.tokens
            self._tokens = Watched([path], lambda: read_tokens(path))
        self._rates = Rates()
        self._failures = Rates(_FAILURES_AT_ONCE_SECONDS)
        self._log = BoundedLog(log)
        self._closed = threading.Event()

    @property
    def asks_readers(self) -> bool:
        """Whether anything is asked of calls that only read; if not, they need not come here."""
        return self._tokens is not None or self._rate is not None

    def start(self) -> None:
        """Looks for a changed tokens file from now on."""
        if self._tokens is not None:
            threading.Thread(target=self._look, name="tokens", daemon=True).start()

    def close(self) -> None:
        """Looks no more."""
        self._closed.set()

    def _look(self) -> None:
        assert self._tokens is not None
        while not self._closed.wait(_LOOK_SECONDS):
            self._tokens.refresh()

    def admit(self, path: str, peer: Peer, requests: int = 1) -> None:
        """Lets a call in.

        Args:
            path: "/package.Service/Method".
            peer: who calls.
            requests: as how many it counts; 0 for one whose requests are charged for once they are read.

        Raises:
            Unauthenticated, PermissionDenied, RateLimited: not this one.
        """
        try:
            token = self.authorize(path, peer.invocation_metadata())
        except (Unauthenticated, PermissionDenied) as error:
            raise self.refusal(error, path, peer) from None
        if requests:
            self._charge(token, peer, requests)

    def authorize(self, path: str, metadata: Metadata) -> Token | None:
        """Whether a caller may call a method, whatever it asks for and however often.

        Returns:
            The caller's token; None where none is needed.

        Raises:
            Unauthenticated: it bears no token that is known.
            PermissionDenied: its token does not allow it, or the operator has not turned it on.
        """
        if path.startswith(OPEN_SERVICE):
            return None
        token = None if self._tokens is None else self._known(metadata)
        scope = Scope.READ
        if path in ADMIN_METHODS:
            scope = Scope.ADMIN
            if not self._admin:
                raise AdminOff
        if token is not None and scope not in token.scopes:
            raise PermissionDenied(f"the token {token.name} is not for this: it lacks the scope {scope}")
        return token

    def refusal(self, error: Unauthenticated | PermissionDenied, path: str, peer: Peer) -> QueryError:
        """What to tell a caller who was not let in: why, or after many such calls from its address, to wait.

        Calls with a good token are let in all the same, or one misled client could lock out all that share its address.
        """
        if isinstance(error, AdminOff):
            return error
        self._log.warning("%s is refused to %s: %s", _printable(path), unquote(peer.peer()), error)
        wait = self._failures.take(address_of(peer.peer()), _FAILURES_PER_SECOND)
        return RateLimited(wait, "too many calls that were not allowed came from this address") if wait else error

    def charge(self, peer: Peer, requests: int = 1) -> None:
        """Counts requests of a caller.

        Raises:
            RateLimited: it has made too many.
        """
        tokens = None if self._tokens is None else self._tokens.value
        if self._rate is not None or (tokens is not None and tokens.have_rates):
            self._charge(None if tokens is None else self._bearer(peer.invocation_metadata()), peer, requests)

    def _charge(self, token: Token | None, peer: Peer, requests: int) -> None:
        rate = self._rate if token is None or token.rate is None else token.rate
        if rate is None:
            return
        caller = f"token {token.name}" if token is not None else _caller(peer)
        wait = self._rates.take(caller, rate, requests)
        if wait:
            self._log.warning("%s has made more than %g requests/s", caller, rate)
            raise RateLimited(wait, f"more than {rate:g} requests/s")

    def _known(self, metadata: Metadata) -> Token:
        token = self._bearer(metadata)
        if token is None:
            raise Unauthenticated
        return token

    def _bearer(self, metadata: Metadata) -> Token | None:
        assert self._tokens is not None
        for key, value in metadata:
            if key == "authorization" and isinstance(value, str):
                scheme, _, presented = value.partition(" ")
                return self._tokens.value.find(presented.strip()) if scheme.lower() == "bearer" else None
        return None


def _printable(text: str) -> str:
    """Text from a stranger as it may stand in a line of the log, which it must not end."""
    return text if len(text) <= _LOGGED_CHARACTERS and text.isprintable() else shown(text)


def _caller(peer: Peer) -> str:
    """Whose requests those of a peer without a token are."""
    for name in peer.peer_identities() or ():
        return f"certificate {_printable(name.decode(errors='replace'))}"
    return address_of(peer.peer())


def address_of(peer: str) -> str:
    """The address of a peer without its port; of IPv6 the network, of which whoever has one address has all."""
    family, _, rest = peer.partition(":")
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    if family == "ipv6":
        address = ipaddress.IPv6Address(host)
        if address.ipv4_mapped is not None:
            return f"address {address.ipv4_mapped}"
        return f"address {ipaddress.IPv6Network((int(address), _NETWORK_BITS), strict=False)}"
    return f"address {host}"
