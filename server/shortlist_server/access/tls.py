"""TLS and mutual TLS, with certificates that may be replaced while the server runs."""

import functools
import ssl
from pathlib import Path

import grpc

from shortlist_server.access.config import AccessConfig
from shortlist_server.access.watched import Watched, read_bytes


def server_credentials(config: AccessConfig) -> grpc.ServerCredentials | None:
    """What a server's port needs for TLS; None where there is to be none.

    gRPC asks before every handshake whether the certificates have changed, so that a new one serves from the next
    connection on. Connections that are open go on.

    Raises:
        OSError, ValueError: a file is missing or broken; the text names it.
    """
    if config.tls_cert is None or config.tls_key is None:
        return None
    read = functools.partial(_read, config.tls_cert, config.tls_key, config.tls_client_ca)
    paths = [path for path in (config.tls_cert, config.tls_key, config.tls_client_ca) if path is not None]
    watched = Watched(paths, read)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        return watched.value if watched.refresh() else None

    return grpc.dynamic_ssl_server_credentials(
        watched.value,
        changed,  # type: ignore[arg-type]  # None stands for no change, which the stubs do not say
        require_client_authentication=config.tls_client_ca is not None,
    )


def _read(cert: Path, key: Path, client_ca: Path | None) -> grpc.ServerCertificateConfiguration:
    """Reads and checks the files: gRPC itself finds a broken one only when a client connects."""
    cert_pem, key_pem = read_bytes(cert, "--tls-cert"), read_bytes(key, "--tls-key")
    _check_certificates(cert_pem, cert, "--tls-cert")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"--tls-key {key} is not the key of --tls-cert {cert}") from error
        raise ValueError(f"--tls-key {key} holds no private key in PEM that can be used") from error
    # What was checked must be what was read.
    if (cert_pem, key_pem) != (read_bytes(cert, "--tls-cert"), read_bytes(key, "--tls-key")):
        raise ValueError(f"--tls-cert {cert} or --tls-key {key} changed while it was read")
    if client_ca is None:
        return grpc.ssl_server_certificate_configuration([(key_pem, cert_pem)])
    ca_pem = read_bytes(client_ca, "--tls-client-ca")
    _check_certificates(ca_pem, client_ca, "--tls-client-ca")
    return grpc.ssl_server_certificate_configuration([(key_pem, cert_pem)], ca_pem)


def _check_certificates(pem: bytes, path: Path, option: str) -> None:
    try:
        # What people write around certificates may be in any encoding, which Python refuses and OpenSSL passes over.
        text = pem.decode("ascii", errors="replace").replace("\ufffd", "?")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"{option} {path} holds no certificates in PEM") from error


def _no_password() -> str:
    raise ValueError("--tls-key must not be encrypted: nobody is there to type a password when it is replaced")
