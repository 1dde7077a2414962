"""TLS aside, who may call what: tokens, scopes and the admin switch, as raw calls meet them on both lanes."""

import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shortlist.v1 import recommender_pb2
from shortlist_client import Client, Unauthenticated
from shortlist_client import recommend_request as request
from shortlist_client.main import main
from shortlist_server.access.config import AccessConfig
from shortlist_server.access.gate import ADMIN_METHODS
from shortlist_server.config import ServerConfig
from tests.callers import (
    ASKED,
    CODE,
    HEALTH,
    LIST_MODELS,
    METHODS,
    RECOMMEND,
    REFLECTION,
    Metadata,
    TokensFile,
    call,
    code,
    raw,
    retry_seconds,
)
from tests.reliability.noise import asked, opened
from tests.running import SHORTLIST, server_process, serving, shortlist
from tests.scraping import patiently


@pytest.fixture
def tokens(tmp_path: Path) -> TokensFile:
    return TokensFile(tmp_path / "tokens")


@pytest.mark.parametrize("path", [*METHODS, REFLECTION, HEALTH])
def test_every_method_asks_for_a_token_with_its_scope(
    token_server: tuple[str, Metadata, Metadata, Metadata], path: str
) -> None:
    address, reader, admin, both = token_server
    with grpc.insecure_channel(address) as channel:
        if path == HEALTH:
            assert code(channel, path) is CODE.OK
            return
        stranger = call(channel, path)
        assert stranger is not None
        assert stranger.code() in (CODE.UNAUTHENTICATED, CODE.RESOURCE_EXHAUSTED)
        allowed, denied = (admin, reader) if path in ADMIN_METHODS else (reader, admin)
        assert code(channel, path, denied) in (CODE.PERMISSION_DENIED, CODE.RESOURCE_EXHAUSTED)
        for metadata in (allowed, both):
            assert code(channel, path, metadata) not in (CODE.UNAUTHENTICATED, CODE.PERMISSION_DENIED)


@pytest.fixture(scope="module")
def token_server(
    small_models: Path, lane: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Metadata, Metadata, Metadata]]:
    """A server with tokens: its address, a reader's metadata, an admin's, and one's who is both."""
    tokens = TokensFile(tmp_path_factory.mktemp("tokens") / "tokens")
    reader, admin, both = (
        tokens.add("reader", "read"),
        tokens.add("admin", "admin"),
        tokens.add("both", "read", "admin"),
    )
    with serving(small_models, lane, admin=True, access=AccessConfig(tokens=tokens.path)) as app:
        yield app.address, reader, admin, both


def test_the_methods_that_steer_are_listed_and_exist() -> None:
    assert {path.rpartition("/")[2] for path in ADMIN_METHODS} == {"LoadModel", "UnloadModel", "SetLabel"}
    assert set(METHODS) >= ADMIN_METHODS


@pytest.mark.parametrize("path", [RECOMMEND, LIST_MODELS])
def test_only_a_bearer_token_that_is_known_is_taken_and_none_is_ever_logged(
    small_models: Path, lane: str, tokens: TokensFile, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    ((_, header),) = good = tokens.add("shop", "read")
    secret = header.split()[1]
    wrong: list[Metadata] = [
        (),
        (("authorization", secret),),
        (("authorization", f"Basic {secret}"),),
        (("authorization", f"Bearer {secret}x"),),
        (("authorization", f"Bearer {secret[:-1]}"),),
        (("authorization", f"Bearer {secret.upper()}"),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer ~ ~"),),
        (("token", secret),),
    ]
    with (
        serving(small_models, lane, access=AccessConfig(tokens=tokens.path)) as app,
        grpc.insecure_channel(app.address) as channel,
    ):
        for metadata in wrong:
            assert code(channel, path, metadata, ASKED) is CODE.UNAUTHENTICATED, metadata
        assert code(channel, path, good, ASKED) is CODE.OK
        assert code(channel, path, (("authorization", f"bearer  {secret}"),), ASKED) is CODE.OK
    refusals = [record for record in caplog.records if "is refused to ipv4:127.0.0.1" in record.message]
    assert len(refusals) == len(wrong)
    assert {record.levelname for record in refusals} == {"WARNING"}
    assert secret[10:-1].lower() not in caplog.text.lower()


def test_headers_that_are_no_text_are_not_logged(small_models: Path, lane: str, tokens: TokensFile) -> None:
    tokens.add("shop", "read")
    with server_process(small_models, "--lane", lane, "--tokens", str(tokens.path)) as (process, address):
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as stranger:
            calls = (asked(n, authorization=b"Bearer secret-\xff", x=b"\xff" * 99) for n in range(1, 401, 2))
            stranger.sendall(opened() + b"".join(calls))
            time.sleep(1)
        with grpc.insecure_channel(address) as channel:
            assert code(channel, HEALTH) is CODE.OK
        process.terminate()
        assert process.stderr is not None
        log = process.stderr.read()
    assert "is refused" in log
    assert "secret" not in log
    assert "Traceback" not in log


def test_a_stranger_writes_no_lines_of_its_own_into_the_log(
    small_models: Path, lane: str, tokens: TokensFile, caplog: pytest.LogCaptureFixture
) -> None:
    tokens.add("shop", "read")
    with (
        serving(small_models, lane, access=AccessConfig(tokens=tokens.path)) as app,
        grpc.insecure_channel(app.address) as channel,
    ):
        for path in ("/x\nINFO version 666 answers now\x1b[31m/y", f"/{'x' * 5_000}/y"):
            assert code(channel, path, (), ASKED) is not CODE.OK
    messages = [record.message for record in caplog.records if "is refused to" in record.message]
    assert len(messages) == 2
    assert all(message.isprintable() and len(message) < 300 for message in messages)


def test_many_refusals_are_slowed_and_logged_at_a_bounded_rate_while_good_tokens_pass(
    small_models: Path, lane: str, tokens: TokensFile, caplog: pytest.LogCaptureFixture
) -> None:
    good = tokens.add("shop", "read")
    guess = (("authorization", "Bearer guess"),)
    with (
        serving(small_models, lane, access=AccessConfig(tokens=tokens.path)) as app,
        grpc.insecure_channel(app.address) as channel,
    ):
        started = time.monotonic()
        errors = [call(channel, RECOMMEND, guess, ASKED) for _ in range(60)]
        took = time.monotonic() - started
        assert code(channel, RECOMMEND, good, ASKED) is CODE.OK
    codes = [error.code() for error in errors if error is not None]
    assert len(codes) == 60
    assert codes[:10] == [CODE.UNAUTHENTICATED] * 10
    assert codes.count(CODE.UNAUTHENTICATED) <= 11 + took
    assert codes[-1] is CODE.RESOURCE_EXHAUSTED or took > 40
    assert 0 < retry_seconds(next(error for error in errors if error and error.code() is CODE.RESOURCE_EXHAUSTED)) <= 1
    assert len([record for record in caplog.records if "is refused" in record.message]) <= 11 + took


def test_a_stranger_is_refused_before_its_message_is_read(small_models: Path, lane: str, tokens: TokensFile) -> None:
    """A call whose message never comes would otherwise hold a thread, and one of 16 MiB the memory."""
    tokens.add("shop", "read")
    never = threading.Event()

    def messages() -> Iterator[bytes]:
        never.wait(20)
        yield b""

    with (
        serving(small_models, lane, access=AccessConfig(tokens=tokens.path)) as app,
        grpc.insecure_channel(app.address) as channel,
    ):
        for path in (RECOMMEND, LIST_MODELS):
            started = time.monotonic()
            with pytest.raises(grpc.RpcError) as caught:
                next(raw(channel, path, messages()))
            assert caught.value.code() is CODE.UNAUTHENTICATED
            assert time.monotonic() - started < 10
        never.set()


def test_tokens_are_read_again_when_they_change_and_a_broken_file_leaves_the_old_ones(
    small_models: Path, lane: str, tokens: TokensFile, caplog: pytest.LogCaptureFixture
) -> None:
    first = tokens.add("first", "read")
    with (
        serving(small_models, lane, access=AccessConfig(tokens=tokens.path)) as app,
        grpc.insecure_channel(app.address) as channel,
    ):

        def becomes(metadata: Metadata, expected: grpc.StatusCode) -> bool:
            deadline = time.monotonic() + 10
            while code(channel, RECOMMEND, metadata, ASKED) is not expected:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.25)
            return True

        second = tokens.add("second", "read")
        assert becomes(second, CODE.OK)
        lines = tokens.path.read_text().splitlines()
        tokens.path.write_text(f"{lines[1]}\n")
        assert becomes(first, CODE.UNAUTHENTICATED)

        good = tokens.path.read_text()
        for broken, words in (
            (f"{lines[1]}\nthird 12 read\n", "line 2: the hash must be"),
            ("", "holds no token"),
        ):
            tokens.path.write_text(broken)
            deadline = time.monotonic() + 10
            while words not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.1)
            assert str(tokens.path) in caplog.text
            assert words in caplog.text
            assert code(channel, RECOMMEND, second, ASKED) is CODE.OK
        tokens.path.write_text(good + f"{lines[0]}\n")
        assert becomes(first, CODE.OK)


def test_neither_a_pipe_nor_a_huge_file_keeps_tokens_from_being_read_again(
    small_models: Path, tokens: TokensFile, caplog: pytest.LogCaptureFixture
) -> None:
    old = tokens.add("old", "read")
    with (
        caplog.at_level(logging.INFO),
        serving(small_models, access=AccessConfig(tokens=tokens.path)) as app,
        grpc.insecure_channel(app.address) as channel,
    ):
        assert code(channel, RECOMMEND, old, ASKED) is CODE.OK
        tokens.path.unlink()
        os.mkfifo(tokens.path)
        patiently(lambda: f"--tokens {tokens.path} is no file; what was read before" in caplog.text)
        tokens.path.unlink()
        with tokens.path.open("wb") as file:
            file.truncate((16 << 20) + 1)
        patiently(lambda: f"--tokens {tokens.path} has more than 16,777,216 bytes" in caplog.text)
        assert code(channel, RECOMMEND, old, ASKED) is CODE.OK
        tokens.path.unlink()
        new = tokens.add("new", "read")
        patiently(lambda: f"read again: {tokens.path}" in caplog.text)
        assert code(channel, RECOMMEND, new, ASKED) is CODE.OK
        assert code(channel, RECOMMEND, old, ASKED) is CODE.UNAUTHENTICATED


@pytest.mark.parametrize("option", ["--tokens", "--tls-cert"])
def test_serve_ends_with_1_and_one_line_when_a_file_of_access_is_a_pipe(
    small_models: Path, tmp_path: Path, option: str
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    options = [option, str(pipe), *(["--tls-key", "none.key"] if option == "--tls-cert" else [])]
    tried = subprocess.run(
        [*SHORTLIST, "serve", "--models-dir", str(small_models), "--port", "0", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert tried.returncode == 1
    assert tried.stderr == f"shortlist: {option} {pipe} is no file\n"


def known(client: Client) -> bool:
    try:
        client.recommend("u0")
    except Unauthenticated:
        return False
    return True


def test_a_stream_ends_when_its_token_is_taken_back(small_models: Path, lane: str, tokens: TokensFile) -> None:
    tokens.add("stays", "read")
    before = tokens.path.read_text()
    ((_, header),) = tokens.add("shop", "read")
    taken_back = threading.Event()

    def requests() -> Iterator[tuple[str, recommender_pb2.RecommendRequest]]:
        yield "1", request("u0")
        taken_back.wait(20)
        yield "2", request("u0")

    with (
        serving(small_models, lane, access=AccessConfig(tokens=tokens.path)) as app,
        Client(app.address, token=header.split()[1]) as client,
    ):
        answers = client.stream_recommend(requests())
        assert next(answers)[0] == "1"
        tokens.path.write_text(before)
        deadline = time.monotonic() + 10
        while known(client) and time.monotonic() < deadline:
            time.sleep(0.1)
        taken_back.set()
        with pytest.raises(Unauthenticated):
            next(answers)


def test_steering_is_off_unless_it_is_turned_on(small_models: Path, lane: str, tokens: TokensFile) -> None:
    admin = tokens.add("admin", "admin")
    for access, metadata in ((AccessConfig(), ()), (AccessConfig(tokens=tokens.path), admin)):
        with serving(small_models, lane, access=access) as app, grpc.insecure_channel(app.address) as channel:
            for path in [*sorted(ADMIN_METHODS)] * 5:
                error = call(channel, path, metadata)
                assert error is not None
                assert error.code() is CODE.PERMISSION_DENIED
                assert "the operator has not turned on" in (error.details() or "")
            assert code(channel, LIST_MODELS) is (CODE.UNAUTHENTICATED if metadata else CODE.OK)
    with serving(small_models, lane, admin=True) as app, grpc.insecure_channel(app.address) as channel:
        for path in ADMIN_METHODS:
            assert code(channel, path) is not CODE.PERMISSION_DENIED


def test_strangers_are_not_let_in_by_mistake(small_models: Path, tokens: TokensFile) -> None:
    tokens.add("admin", "admin")
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(ValueError, match=r"is not a loopback address.*--insecure-public"):
            ServerConfig(small_models, host=host)
        ServerConfig(small_models, host=host, access=AccessConfig(insecure_public=True))
        ServerConfig(small_models, host=host, access=AccessConfig(tls_cert=Path("c"), tls_key=Path("k")))
        with pytest.raises(ValueError, match="--admin lets callers"):
            ServerConfig(small_models, host=host, admin=True, access=AccessConfig(insecure_public=True))
        ServerConfig(small_models, host=host, admin=True, access=AccessConfig(insecure_public=True, tokens=tokens.path))
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        ServerConfig(small_models, host=host, admin=True)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_refuses_a_public_address_with_advice(small_models: Path, workers: str) -> None:
    tried = shortlist(
        "serve", "--models-dir", str(small_models), "--port", "0", "--host", "0.0.0.0", "--workers", workers
    )
    assert tried.returncode == 1
    assert tried.stderr.count("\n") == 1
    assert "give --tls-cert and --tls-key, or --insecure-public" in tried.stderr


def test_an_open_public_server_says_so_in_its_log(
    small_models: Path, tokens: TokensFile, caplog: pytest.LogCaptureFixture
) -> None:
    tokens.add("shop", "read")
    for access, words in (
        (AccessConfig(insecure_public=True), "whoever reaches 0.0.0.0 may ask"),
        (AccessConfig(insecure_public=True, tokens=tokens.path), "tokens to 0.0.0.0 in the clear"),
    ):
        with caplog.at_level(logging.WARNING), serving(small_models, host="0.0.0.0", access=access):
            pass
        assert words in caplog.text
        caplog.clear()


def test_the_token_command_shows_a_token_once_and_writes_its_hash_alone(
    small_models: Path, lane: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokens"
    assert main(["token", "shop", "--scope", "read", "--tokens", str(path)]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert main(["token", "shop", "--scope", "read", "--tokens", str(path)]) == 1
    assert f"{path}, line 2: has the name of line 1" in capsys.readouterr().err
    assert main(["token", "deploy", "--scope", "admin", "--scope", "read", "--rate", "2.5"]) == 0
    shown = capsys.readouterr()
    with path.open("a") as file:
        file.write(shown.err.splitlines()[1] + "\n")
    with serving(small_models, lane, access=AccessConfig(tokens=path)) as app:
        for token in (secret, shown.out.strip()):
            with Client(app.address, token=token) as client:
                assert len(client.recommend("u0").items) == 10
        with Client(app.address, token=secret[::-1]) as client, pytest.raises(Unauthenticated):
            client.recommend("u0")
