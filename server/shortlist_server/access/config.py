"""What an operator chooses about access, and which choices are refused."""

import ipaddress
import math
import socket
from dataclasses import dataclass
from pathlib import Path

_MAX_RATE = 1_000_000
_MOST = 1_000_000


@dataclass(frozen=True)
class AccessConfig:
    """Everything that can be chosen about access. By default: no TLS, no tokens, no rates, loopback only.

    Attributes:
        tls_cert: the server's certificate chain in PEM; with it there is TLS and nothing else.
        tls_key: its private key in PEM, not encrypted.
        tls_client_ca: certificates in PEM, one of which must have signed the client's; None asks clients for none.
        tokens: the file of hashed tokens (access/tokens.py), one of which every call must bear; None asks for none.
        rate_limit: requests/s of each caller whose token says nothing else; None for no limit.
        connections: that may be open at once.
        calls_per_connection: that may be under way at once.
        insecure_public: other addresses than loopback may be listened on without TLS.

    Raises:
        ValueError: a value is out of its range, or one lacks another.
    """

    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens: Path | None = None
    rate_limit: float | None = None
    connections: int = 1_000
    calls_per_connection: int = 1_024
    insecure_public: bool = False

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together: give both or none")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("--tls-client-ca needs --tls-cert and --tls-key")
        if self.rate_limit is not None:
            check_rate(self.rate_limit)
        for name in ("connections", "calls_per_connection"):
            if not 1 <= getattr(self, name) <= _MOST:
                words = name.replace("_", " ")
                raise ValueError(f"{words} must lie between 1 and {_MOST:,}, not be {getattr(self, name):,}")

    def check_address(self, host: str, *, admin: bool) -> None:
        """Refuses what would let strangers in.

        Args:
            host: the address to listen on.
            admin: whether ModelService's admin RPCs are on.

        Raises:
            ValueError: the choices do not go together; the text says what would.
        """
        if not _addresses(host):
            bare = host.strip("[]")
            advice = "choose another with --host" if bare == host else f"write it without brackets, --host {bare}"
            raise ValueError(f"{host} is no address, nor a name that this machine knows an address of: {advice}")
        loopback = is_loopback(host)
        if not (loopback or self.tls_cert or self.insecure_public):
            raise ValueError(
                f"{host} is not a loopback address, and without TLS whoever is on the network can read and change "
                "every call: give --tls-cert and --tls-key, or --insecure-public where something else protects it"
            )
        # A client certificate says who calls and not what they may do.
        if admin and self.tokens is None and not (loopback and self.tls_client_ca is None):
            raise ValueError(
                "--admin lets callers load, unload and label versions: give --tokens with a token of scope admin, or "
                "listen on loopback without --tls-client-ca"
            )

    def concerns(self, host: str) -> list[str]:
        """What may be meant and should be known, for the log.

        Args:
            host: the address to listen on.
        """
        if is_loopback(host):
            return []
        concerns = []
        if self.tokens is None and self.tls_client_ca is None:
            concerns.append(f"whoever reaches {host} may ask: there is neither --tokens nor --tls-client-ca")
        if self.tokens is not None and self.tls_cert is None:
            concerns.append(f"callers send their tokens to {host} in the clear: there is no --tls-cert")
        return concerns


def check_rate(rate: float) -> None:
    """Checks a rate in requests/s.

    Raises:
        ValueError: it is out of its range.
    """
    if not (math.isfinite(rate) and 0.001 <= rate <= _MAX_RATE):
        raise ValueError(f"a rate limit must lie between 0.001 and {_MAX_RATE:,} requests/s, not be {rate:g}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name counts as all that it stands for."""
    addresses = _addresses(host)
    return bool(addresses) and all(ipaddress.ip_address(address).is_loopback for address in addresses)


def _addresses(host: str) -> list[str]:
    """What a name, or an address itself, stands for; nothing where it cannot be told."""
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):  # the latter of what no name can be
        return []
    return [str(address[0]).partition("%")[0] for *_, address in found]
