"""The options of every command that asks a server: where it is, TLS, and the token."""

import argparse
import os
from pathlib import Path

import grpc

from shortlist_client.channel import Connection
from shortlist_client.client import DEFAULT_TARGET

_TLS = ("tls", "tls_ca", "tls_cert", "tls_key", "tls_server_name")
TOKEN_VARIABLE = "SHORTLIST_TOKEN"  # noqa: S105 # the name of what holds it


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that ``connection_of`` reads."""
    parser.add_argument("--server", default=DEFAULT_TARGET, metavar="HOST:PORT", help=f"default: {DEFAULT_TARGET}")
    parser.add_argument("--tls", action="store_true", help="connect by TLS and trust what this machine trusts")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="by TLS, and trust these certificates instead")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="this client's certificate chain, for mutual TLS")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="the private key of --tls-cert")
    parser.add_argument(
        "--tls-server-name", metavar="NAME", help="the name in the server's certificate, where --server has another"
    )
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"holds the bearer token (default: ${TOKEN_VARIABLE}, if set)"
    )
    parser.add_argument("--token-in-the-clear", action="store_true", help="send it to another machine even without TLS")


def connection_of(options: argparse.Namespace) -> Connection:
    """The connection that a command's options describe.

    Raises:
        OSError: a file cannot be read; the text names it.
        ValueError: the options do not go together.
    """
    return Connection(
        target=options.server,
        credentials=credentials_of(options),
        server_name=options.tls_server_name,
        token=_token(options.token_file),
        token_in_the_clear=options.token_in_the_clear,
    )


def tls_options(options: argparse.Namespace) -> argparse.Namespace:
    """Those of a command's options that ``credentials_of`` reads; unlike all of them, they can travel to a process."""
    return argparse.Namespace(**{name: getattr(options, name) for name in _TLS})


def credentials_of(options: argparse.Namespace) -> grpc.ChannelCredentials | None:
    """The credentials that a command's options describe; None for a connection without TLS.

    Raises:
        OSError: a file cannot be read; the text names it.
        ValueError: the options do not go together.
    """
    if (options.tls_cert is None) != (options.tls_key is None):
        raise ValueError("--tls-cert and --tls-key belong together: give both or none")
    if not (options.tls or options.tls_ca or options.tls_cert):
        if options.tls_server_name is not None:
            raise ValueError("--tls-server-name needs --tls, --tls-ca or --tls-cert")
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=_read(options.tls_ca, "--tls-ca"),
        private_key=_read(options.tls_key, "--tls-key"),
        certificate_chain=_read(options.tls_cert, "--tls-cert"),
    )


def _token(path: Path | None) -> str | None:
    held = _read(path, "--token-file")
    if held is not None:
        return held.decode(errors="replace").strip()
    return os.environ.get(TOKEN_VARIABLE) or None


def _read(path: Path | None, option: str) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise OSError(f"{option} {path} cannot be read: {error.strerror}") from error
