"""TLS and mutual TLS over both lanes, as a raw caller and as the client meet them; certificates replaced meanwhile."""

import asyncio
import re
import subprocess
import time
from pathlib import Path

import grpc
import pytest

from shortlist.v1 import recommender_pb2
from shortlist_client import AsyncClient, Client, Unauthenticated, Unavailable
from shortlist_client.main import main
from shortlist_server.access.config import AccessConfig
from shortlist_server.access.tokens import append_token, new_token
from shortlist_server.app import ServerApp
from tests.certificates import Authority, Certificate
from tests.running import server_process, serving, shortlist

RECOMMEND = "/shortlist.v1.RecommenderService/Recommend"
LIST_MODELS = "/shortlist.v1.ModelService/ListModels"
ASKED = recommender_pb2.RecommendRequest(user_id="u0", k=3).SerializeToString()


@pytest.fixture(scope="module")
def ours() -> Authority:
    return Authority("ours")


@pytest.fixture(scope="module")
def theirs() -> Authority:
    return Authority("theirs")


@pytest.fixture
def tls(tmp_path: Path, ours: Authority) -> AccessConfig:
    """TLS with a certificate that ``ours`` signed."""
    cert, key = ours.sign("server").write(tmp_path, "server")
    return AccessConfig(tls_cert=cert, tls_key=key)


@pytest.fixture
def mutual(tmp_path: Path, tls: AccessConfig, ours: Authority) -> AccessConfig:
    """The same, and clients must have one too."""
    (tmp_path / "ca.crt").write_bytes(ours.cert)
    return AccessConfig(tls_cert=tls.tls_cert, tls_key=tls.tls_key, tls_client_ca=tmp_path / "ca.crt")


def trusting(authority: Authority, own: Certificate | None = None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(authority.cert, own.key if own else None, own.cert if own else None)


def answered(app: ServerApp, credentials: grpc.ChannelCredentials | None) -> set[grpc.StatusCode | None]:
    """How calls of either kind fail over a connection of their own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with (
        grpc.insecure_channel(app.address, options)
        if credentials is None
        else grpc.secure_channel(app.address, credentials, options)
    ) as channel:
        return {_failure(channel, path, asked) for path, asked in ((RECOMMEND, ASKED), (LIST_MODELS, b""))}


def _failure(channel: grpc.Channel, path: str = RECOMMEND, asked: bytes = ASKED) -> grpc.StatusCode | None:
    """How a raw call fails; None where it does not."""
    try:
        channel.unary_unary(path)(asked, timeout=5)  # type: ignore[arg-type]  # bytes stay as they are
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return None


OK = {None}
NO_CONNECTION = {grpc.StatusCode.UNAVAILABLE}


def test_a_server_with_tls_answers_who_trusts_its_authority_and_nobody_else(
    small_models: Path, lane: str, tls: AccessConfig, ours: Authority, theirs: Authority
) -> None:
    with serving(small_models, lane, access=tls) as app:
        assert answered(app, trusting(ours)) == OK
        assert answered(app, trusting(theirs)) == NO_CONNECTION
        assert answered(app, None) == NO_CONNECTION  # a client without TLS


def test_mutual_tls_lets_in_whose_certificate_the_authority_signed_and_that_is_valid(
    small_models: Path, lane: str, mutual: AccessConfig, ours: Authority, theirs: Authority
) -> None:
    with serving(small_models, lane, access=mutual) as app:
        assert answered(app, trusting(ours, ours.sign("shop"))) == OK
        assert answered(app, trusting(ours)) == NO_CONNECTION
        assert answered(app, trusting(ours, theirs.sign("shop"))) == NO_CONNECTION
        assert answered(app, trusting(ours, ours.sign("shop", expired=True))) == NO_CONNECTION
        assert answered(app, None) == NO_CONNECTION


def test_a_certificate_alone_never_steers_the_server(
    small_models: Path, lane: str, mutual: AccessConfig, ours: Authority
) -> None:
    with (
        serving(small_models, lane, access=mutual) as app,
        grpc.secure_channel(app.address, trusting(ours, ours.sign("shop"))) as channel,
    ):
        assert _failure(channel, "/shortlist.v1.ModelService/SetLabel", b"") is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(ValueError, match="give --tokens with a token of scope admin"):
        mutual.check_address("127.0.0.1", admin=True)


def test_a_caller_with_a_certificate_is_limited_by_its_name(
    small_models: Path, lane: str, mutual: AccessConfig, ours: Authority
) -> None:
    limited = AccessConfig(**{**vars(mutual), "rate_limit": 2})
    failures = []
    with serving(small_models, lane, access=limited) as app:
        for name in ("shop", "shop", "shop", "app"):  # each time another connection and certificate
            with grpc.secure_channel(app.address, trusting(ours, ours.sign(name))) as channel:
                failures.append(_failure(channel))
    assert failures == [None, None, grpc.StatusCode.RESOURCE_EXHAUSTED, None]


def test_new_certificates_serve_from_the_next_connection_on_and_open_ones_go_on(
    small_models: Path,
    lane: str,
    mutual: AccessConfig,
    ours: Authority,
    theirs: Authority,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert mutual.tls_cert is not None
    assert mutual.tls_client_ca is not None
    folder = mutual.tls_cert.parent
    shop = ours.sign("shop")
    with (
        serving(small_models, lane, access=mutual) as app,
        grpc.secure_channel(app.address, trusting(ours, shop)) as before,
    ):
        assert _failure(before) is None

        theirs.sign("server").write(folder, "server")
        assert answered(app, trusting(theirs, shop)) == OK
        assert answered(app, trusting(ours, shop)) == NO_CONNECTION

        mutual.tls_client_ca.write_bytes(theirs.cert)
        assert answered(app, trusting(theirs, theirs.sign("shop"))) == OK
        assert answered(app, trusting(theirs, shop)) == NO_CONNECTION
        assert _failure(before) is None

        # A broken one is told of, once, and what was there before stays.
        good = mutual.tls_cert.read_bytes()
        mutual.tls_cert.write_bytes(good[: len(good) // 2])
        for _ in range(2):
            assert answered(app, trusting(theirs, theirs.sign("shop"))) == OK
        mutual.tls_cert.write_bytes(ours.sign("server").cert)  # not the key's
        assert answered(app, trusting(theirs, theirs.sign("shop"))) == OK
        mutual.tls_cert.unlink()
        assert answered(app, trusting(theirs, theirs.sign("shop"))) == OK
        mutual.tls_cert.write_bytes(good)
        assert answered(app, trusting(theirs, theirs.sign("shop"))) == OK
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert [error.partition(" ")[0] for error in errors] == ["--tls-cert", "--tls-key", "--tls-cert"]
    assert all(str(folder) in error and "stays in force" in error for error in errors)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_what_people_write_around_certificates_does_no_harm(
    small_models: Path, lane: str, mutual: AccessConfig, ours: Authority, encoding: str
) -> None:
    for path in (mutual.tls_cert, mutual.tls_client_ca):
        assert path is not None
        path.write_bytes("Autorité de certification: Zürich\n".encode(encoding) + path.read_bytes())
    with (
        serving(small_models, lane, access=mutual) as app,
        grpc.secure_channel(app.address, trusting(ours, ours.sign("shop"))) as channel,
    ):
        assert _failure(channel) is None


def test_files_that_are_missing_or_broken_are_named_at_the_start(
    small_models: Path, mutual: AccessConfig, theirs: Authority, tmp_path: Path
) -> None:
    empty, other_key = tmp_path / "empty.pem", theirs.sign("other").write(tmp_path, "other")[1]
    empty.write_bytes(b"")
    encrypted = tmp_path / "encrypted.key"
    command = ["openssl", "pkey", "-in", str(mutual.tls_key), "-aes128", "-passout", "pass:secret"]
    subprocess.run([*command, "-out", str(encrypted)], check=True, capture_output=True)
    for changed, words in (
        ({"tls_cert": tmp_path / "none.crt"}, ["--tls-cert", "none.crt", "No such file"]),
        ({"tls_key": tmp_path / "none.key"}, ["--tls-key", "none.key", "No such file"]),
        ({"tls_client_ca": tmp_path}, ["--tls-client-ca", str(tmp_path), "Is a directory"]),
        ({"tls_cert": empty}, ["--tls-cert", "empty.pem", "no certificates"]),
        ({"tls_key": empty}, ["--tls-key", "empty.pem", "no private key"]),
        ({"tls_key": encrypted}, ["--tls-key", "must not be encrypted"]),
        ({"tls_key": other_key}, ["other.key is not the key of", "server.crt"]),
        ({"tls_client_ca": empty}, ["--tls-client-ca", "empty.pem"]),
    ):
        access = AccessConfig(**{**vars(mutual), **changed})
        with pytest.raises((OSError, ValueError)) as caught, serving(small_models, access=access):
            pass
        assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_ends_with_1_and_one_line_when_a_certificate_is_missing(small_models: Path, workers: str) -> None:
    tried = shortlist(
        *("serve", "--models-dir", str(small_models), "--port", "0", "--workers", workers),
        *("--tls-cert", "none.crt", "--tls-key", "none.key"),
    )
    assert tried.returncode == 1
    assert tried.stderr == "shortlist: --tls-cert none.crt cannot be read: No such file or directory\n"


@pytest.fixture
def files(tmp_path: Path, ours: Authority) -> Path:
    """A folder with all that a server and its client need."""
    ours.sign("server").write(tmp_path, "server")
    ours.sign("shop").write(tmp_path, "shop")
    ours.sign("old", expired=True).write(tmp_path, "old")
    (tmp_path / "ca.crt").write_bytes(ours.cert)
    secret, token = new_token("shop", ["read"])
    append_token(tmp_path / "tokens", token)
    (tmp_path / "token").write_text(f"{secret}\n")
    return tmp_path


def test_workers_speak_mutual_tls_with_tokens_and_a_refused_certificate_is_logged(
    small_models: Path, files: Path, ours: Authority
) -> None:
    serve = [f"--tls-cert={files}/server.crt", f"--tls-key={files}/server.key", f"--tls-client-ca={files}/ca.crt"]
    token = (files / "token").read_text().strip()
    with server_process(small_models, "--workers", "2", *serve, f"--tokens={files}/tokens") as (process, address):
        for _ in range(4):  # each connection goes to either
            own = trusting(ours, ours.sign("shop"))
            with Client(address, credentials=own, token=token, timeout_seconds=10) as client:
                assert len(client.recommend("u0").items) == 10
            with (
                Client(address, credentials=own, timeout_seconds=10) as client,
                pytest.raises(Unauthenticated, match="a token that this server knows is needed"),
            ):
                client.recommend("u0")
        expired = trusting(ours, ours.sign("old", expired=True))
        with Client(address, credentials=expired, token=token) as client, pytest.raises(Unavailable):
            client.recommend("u0")
        process.terminate()
        process.wait(30)
        assert process.stderr is not None
        logged = process.stderr.read()
    assert "certificate has expired" in logged  # by gRPC itself
    assert "RecommenderService/Recommend is refused to ipv4:127.0.0.1" in logged
    assert token not in logged


def test_commands_speak_mutual_tls_and_bear_a_token(
    small_models: Path,
    mutual: AccessConfig,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    token = (files / "token").read_text().strip()
    ca, own = [f"--tls-ca={files}/ca.crt"], [f"--tls-cert={files}/shop.crt", f"--tls-key={files}/shop.key"]
    with serving(small_models, access=AccessConfig(**{**vars(mutual), "tokens": files / "tokens"})) as app:
        at = ["--server", app.address, "--timeout", "5"]
        assert main(["recommend", "u0", *at, *ca, *own, f"--token-file={files}/token"]) == 0
        assert "personalized items for user u0" in capsys.readouterr().out
        assert main(["models", "list", *at, *ca, *own]) == 1
        assert "a token that this server knows is needed" in capsys.readouterr().err
        monkeypatch.setenv("SHORTLIST_TOKEN", token)
        assert main(["models", "list", *at, *ca, *own]) == 0
        monkeypatch.delenv("SHORTLIST_TOKEN")
        assert main(["health", *at, *ca, *own]) == 0
        assert capsys.readouterr().out.endswith("SERVING\n")
        assert main(["health", *at, *ca]) == 1  # no certificate
        assert main(["health", *at, *own]) == 1  # trusts what this machine trusts
        assert main(["health", "--server", f"localhost:{app.port}", *ca, *own]) == 1
        assert main(["health", "--server", f"localhost:{app.port}", *ca, *own, "--tls-server-name", "server"]) == 0
        capsys.readouterr()
        users = [
            "--users-from-model",
            str(small_models / "1"),
            "--duration",
            "0.5",
            "--warmup",
            "0",
            "--processes",
            "2",
        ]
        asked = ["loadtest", *at, *ca, *own, "--slo", "errors<0.1%", *users]
        assert main([*asked, f"--token-file={files}/token"]) == 0, capsys.readouterr()
        capsys.readouterr()
        assert main(["loadtest", *at, *own, *users]) == 1  # trusts what this machine trusts
        assert re.match(rf"shortlist: {app.address} does not answer: .*CERTIFICATE_VERIFY", capsys.readouterr().err)
        assert main([*asked, "--token-file=none"]) == 2
        assert "--token-file none cannot be read" in capsys.readouterr().err
        for wrong, words in (
            (["--tls-cert", "x"], "--tls-cert and --tls-key belong together"),
            (["--tls-server-name", "x"], "--tls-server-name needs"),
            (["--tls-ca", "none.crt"], "--tls-ca none.crt cannot be read: No such file"),
            (["--token-file", "none"], "--token-file none cannot be read: No such file"),
            (["--server", "shop.example:1", f"--token-file={files}/token"], "without TLS"),
        ):
            assert main(["health", *at, *wrong]) == 1
            assert words in capsys.readouterr().err


def test_both_clients_speak_tls_and_bear_a_token(
    small_models: Path, lane: str, tls: AccessConfig, files: Path, ours: Authority
) -> None:
    token = (files / "token").read_text().strip()
    access = AccessConfig(**{**vars(tls), "tokens": files / "tokens"})

    async def ask(address: str) -> int:
        async with AsyncClient(address, credentials=trusting(ours), token=token, timeout_seconds=10) as client:
            return len((await client.recommend("u0", k=3)).items)

    with serving(small_models, lane, access=access) as app:
        with Client(app.address, credentials=trusting(ours), token=token, timeout_seconds=10) as client:
            assert len(client.recommend("u0", k=3).items) == 3
            assert len(client.list_models()) == 1
        assert asyncio.run(ask(app.address)) == 3


def test_connections_beyond_the_limit_are_closed_and_make_room_when_they_end(small_models: Path, lane: str) -> None:
    def connection(app: ServerApp) -> grpc.Channel:
        return grpc.insecure_channel(app.address, [("grpc.use_local_subchannel_pool", 1)])

    with serving(small_models, lane, access=AccessConfig(connections=3)) as app:
        for _ in range(10):
            with connection(app) as channel:
                assert _failure(channel) is None
        opened = [connection(app) for _ in range(3)]
        try:
            deadline = time.monotonic() + 10
            for channel in opened:  # those above may be on their way out still
                while _failure(channel) is not None:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            with connection(app) as one_more:
                assert _failure(one_more) is grpc.StatusCode.UNAVAILABLE
        finally:
            for channel in opened:
                channel.close()
        with connection(app) as channel:
            while _failure(channel) is not None:
                assert time.monotonic() < deadline
                time.sleep(0.1)
