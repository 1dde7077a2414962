"""What ``shortlist serve`` can be told about access, and ``shortlist token``. Imports nothing heavy."""

import argparse
import sys
from pathlib import Path

from shortlist_server.access.config import AccessConfig


def add_access_options(serve: argparse.ArgumentParser) -> None:
    """Adds the options of ``access_config``."""
    serve.add_argument("--tls-cert", type=Path, metavar="FILE", help="the server's certificate chain in PEM")
    serve.add_argument("--tls-key", type=Path, metavar="FILE", help="the private key of --tls-cert")
    serve.add_argument(
        "--tls-client-ca", type=Path, metavar="FILE", help="clients must have a certificate that one of these signed"
    )
    serve.add_argument(
        "--tokens", type=Path, metavar="FILE", help="callers must bear a token of this file; see `shortlist token`"
    )
    serve.add_argument(
        "--rate-limit", type=float, metavar="R", help="requests/s of a caller whose token does not say otherwise"
    )
    serve.add_argument("--connections", type=int, default=1_000, metavar="N", help="that may be open at once")
    serve.add_argument(
        "--calls-per-connection",
        type=int,
        default=1_024,
        metavar="N",
        help="that may be under way at once; few where callers' deadlines are short",
    )
    serve.add_argument(
        "--insecure-public", action="store_true", help="listen on other addresses than loopback without TLS"
    )


def access_config(options: argparse.Namespace) -> AccessConfig:
    """What the options of ``serve`` choose.

    Raises:
        ValueError: they do not go together.
    """
    return AccessConfig(
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        tls_client_ca=options.tls_client_ca,
        tokens=options.tokens,
        rate_limit=options.rate_limit,
        connections=options.connections,
        calls_per_connection=options.calls_per_connection,
        insecure_public=options.insecure_public,
    )


def check(options: argparse.Namespace) -> None:
    """Says early, and once for all workers, what is wrong with the options of access.

    Raises:
        OSError, ValueError: the options do not go together, or name a file that is missing or broken.
    """
    from shortlist_server.access.gate import Gate
    from shortlist_server.access.tls import server_credentials

    config = access_config(options)
    config.check_address(options.host, admin=options.admin)
    server_credentials(config)
    Gate(config, admin=options.admin)


def add_token_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``shortlist token``."""
    token = commands.add_parser(
        "token",
        help="make a token for a caller of a server",
        description="Makes a random token and shows it this once; a server needs only its hash, for `serve --tokens`.",
    )
    token.add_argument("name", metavar="NAME", help="of whoever will bear it, for logs and limits")
    token.add_argument(
        "--scope", action="append", required=True, choices=["read", "admin"], help="what it allows; may be repeated"
    )
    token.add_argument("--rate", type=float, metavar="R", help="requests/s (default: the server's --rate-limit)")
    token.add_argument("--tokens", type=Path, metavar="FILE", help="add its line to this file instead of showing it")
    token.set_defaults(run=_token)


def _token(options: argparse.Namespace) -> int:
    from shortlist_server.access.tokens import append_token, new_token

    try:
        secret, token = new_token(options.name, options.scope, options.rate)
        if options.tokens is not None:
            append_token(options.tokens, token)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"shortlist: {error}\n")
        return 1
    if options.tokens is None:
        sys.stderr.write(f"the line for the server's tokens file:\n{token.line()}\nthe token, shown this once:\n")
    sys.stdout.write(f"{secret}\n")
    return 0
