"""Bearer tokens: made here, kept by callers, and known to the server by their hashes alone.

A line of a tokens file is a name, the SHA-256 of the token in hexadecimal, scopes, and perhaps a rate in requests/s::

    # name   SHA-256 of the token                                               scopes      requests/s
    shop     2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae   read        500
    deploy   fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9   read,admin

Passwords need a slow, salted hash because people choose them: there are few enough to try. A token of ``new_token`` is
one of 2^256 at random, which no speed of hashing makes guessable, so that one round of SHA-256 hides it as well as
anything and costs a microsecond a call.
"""

import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shortlist_server.access.config import check_rate
from shortlist_server.access.watched import read_bytes

_PREFIX = "shortlist_"
"""By which people and scanners of secrets know what it is."""

_RANDOM_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")


class Scope(StrEnum):
    """What a token allows. Neither holds the other."""

    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True)
class Token:
    """What the server knows of a token.

    Attributes:
        name: of whoever holds it.
        digest: (32,) bytes, the token's SHA-256.
        scopes: what it allows.
        rate: requests/s; None for the server's own limit.
    """

    name: str
    digest: bytes
    scopes: frozenset[Scope]
    rate: float | None = None

    def line(self) -> str:
        """The token's line in a tokens file, without its end."""
        fields = [self.name, self.digest.hex(), ",".join(sorted(self.scopes))]
        return "  ".join(fields if self.rate is None else [*fields, f"{self.rate:g}"])


class Tokens:
    """Tokens by their digests.

    Args:
        tokens: of different names and digests.

    Attributes:
        have_rates: whether any of them has a rate of its own.
    """

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._by_digest: Mapping[bytes, Token] = {token.digest: token for token in tokens}
        self.have_rates = any(token.rate is not None for token in self._by_digest.values())

    def find(self, presented: str) -> Token | None:
        """The token that a caller presents; None when it is none of these.

        How long it takes tells a caller nothing: what is looked up is a digest, whose bytes nobody can choose, and it
        is compared in constant time.
        """
        digest = hashlib.sha256(presented.encode("utf-8", "replace")).digest()
        token = self._by_digest.get(digest)
        return token if token is not None and hmac.compare_digest(token.digest, digest) else None


def read_tokens(path: Path) -> Tokens:
    """Reads a tokens file.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is malformed, or there is no token, as in a file that is just being written; names file and
            line.
    """
    tokens: list[Token] = []
    lines: dict[str | bytes, int] = {}
    # With the mark that some editors put before the first line.
    for number, line in enumerate(read_bytes(path, "--tokens").decode("utf-8-sig", "replace").splitlines(), start=1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        try:
            token = _token(fields)
            for kind, key in (("name", token.name), ("hash", token.digest)):
                if key in lines:
                    raise ValueError(f"has the {kind} of line {lines[key]}")
                lines[key] = number
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        tokens.append(token)
    if not tokens:
        raise ValueError(f"{path} holds no token; `shortlist token NAME --scope read --tokens {path}` adds one")
    return Tokens(tokens)


def _token(fields: list[str]) -> Token:
    if not 3 <= len(fields) <= 4:
        raise ValueError(f"must be a name, a SHA-256, scopes and perhaps a rate, not {len(fields)} fields")
    name, digest, scopes, *rate = fields
    if not _HASH.fullmatch(digest):
        raise ValueError("the hash must be 64 hexadecimal digits in lower case")
    return described(name, bytes.fromhex(digest), scopes.split(","), _number(rate[0]) if rate else None)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("the rate must be a number of requests/s") from None


# No text repeats what a line holds: it may be a token that was put there by mistake.
def described(name: str, digest: bytes, scopes: Collection[str], rate: float | None = None) -> Token:
    """A token as it is described.

    Raises:
        ValueError: a part of the description is out of its limits.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("the name must be 1 to 64 of a-z, A-Z, 0-9, '.', '_' and '-'")
    for scope in scopes:
        if scope not in set(Scope):
            raise ValueError(f"a scope must be {' or '.join(Scope)}")
    if rate is not None:
        check_rate(rate)
    return Token(name, digest, frozenset(map(Scope, scopes)), rate)


def new_token(name: str, scopes: Collection[str], rate: float | None = None) -> tuple[str, Token]:
    """A new random token, and what the server is to know of it.

    Raises:
        ValueError: a part of the description is out of its limits.
    """
    secret = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    return secret, described(name, hashlib.sha256(secret.encode()).digest(), scopes, rate)


def append_token(path: Path, token: Token) -> None:
    """Adds a token to a tokens file, which is made if need be, for its owner's eyes alone.

    Of several that are added at once none is lost.

    Raises:
        OSError: it cannot be written.
        ValueError: it is malformed, or has such a name already.
    """
    with _alone_in(path.parent):
        before = path.read_text() if path.exists() else ""
        separator = "" if not before or before.endswith("\n") else "\n"
        candidate = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        candidate.touch(mode=0o600)
        try:
            candidate.write_text(f"{before}{separator}{token.line()}\n")
            if path.exists():
                candidate.chmod(path.stat().st_mode & 0o777)
            try:
                read_tokens(candidate)
            except ValueError as error:
                raise ValueError(str(error).replace(str(candidate), str(path))) from error
            candidate.replace(path)  # at once: a server never reads half of it
        finally:
            candidate.unlink(missing_ok=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Waits until nobody else adds a token in a folder. The file itself is no lock, since another takes its place."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)
