"""Token buckets, tokens files and addresses, piece by piece."""

import errno
import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortlist_server.access import gate
from shortlist_server.access.config import AccessConfig, is_loopback
from shortlist_server.access.rates import BoundedLog, Rates
from shortlist_server.access.tokens import Scope, append_token, new_token, read_tokens
from shortlist_server.access.watched import Watched
from shortlist_server.errors import RateLimited


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_full_bucket_holds_a_second_and_fills_at_its_rate() -> None:
    clock = Clock()
    rates = Rates(clock=clock)
    assert [rates.take("a", 3) for _ in range(3)] == [0, 0, 0]
    assert rates.take("a", 3) == pytest.approx(1 / 3)
    assert rates.take("b", 3) == 0
    clock.now = 1 / 3
    assert rates.take("a", 3) == 0
    assert rates.take("a", 3) > 0
    clock.now = 100
    assert [rates.take("a", 3) > 0 for _ in range(4)] == [False, False, False, True]


def test_a_rate_below_one_lets_one_request_through_at_a_time() -> None:
    clock = Clock()
    rates = Rates(clock=clock)
    assert rates.take("a", 0.1) == 0
    assert rates.take("a", 0.1) == pytest.approx(10)


def test_more_than_a_bucket_holds_passes_when_it_is_full_and_is_paid_for_afterwards() -> None:
    clock = Clock()
    rates = Rates(clock=clock)
    assert rates.take("a", 10, 100) == 0
    assert rates.take("a", 10, 100) == pytest.approx(10)
    assert rates.take("a", 10) == pytest.approx(9.1)
    clock.now = 9.0
    assert rates.take("a", 10, 2) == pytest.approx(0.2)
    clock.now = 9.2
    assert rates.take("a", 10, 2) == 0


@given(
    st.floats(0.01, 1_000),
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 20)), min_size=1, max_size=40),
)
def test_nobody_gets_more_than_rate_and_bucket_and_waiting_as_told_always_helps(
    rate: float, asked: list[tuple[float, int]]
) -> None:
    clock = Clock()
    rates = Rates(clock=clock)
    burst = max(1, rate)
    granted = 0
    for pause, requests in asked:
        clock.now += pause
        wait = rates.take("a", rate, requests)
        if wait:
            clock.now += wait
            assert rates.take("a", rate, requests) == 0
        granted += requests
        assert granted <= clock.now * rate + burst + max(requests - burst, 0) + 1e-6 * granted


def test_what_was_taken_at_an_old_rate_is_paid_for_at_a_new_one_if_that_is_higher() -> None:
    clock = Clock()
    rates = Rates(clock=clock)
    assert rates.take("a", 1, 300) == 0
    assert rates.take("a", 1) == pytest.approx(300)
    assert rates.take("a", 100, 100) == pytest.approx(3)
    clock.now = 2.01
    assert rates.take("a", 100) == 0
    clock.now = 100
    assert rates.take("a", 100, 100) == 0
    assert rates.take("a", 1) == pytest.approx(1)  # and not 100


@pytest.mark.parametrize(
    ("seconds", "words"), [(1e-6, "0.01 s"), (0.333, "0.33 s"), (9.96, "10 s"), (300, "300 s"), (86_400, "86,400 s")]
)
def test_seconds_to_wait_are_written_plainly(seconds: float, words: str) -> None:
    assert str(RateLimited(seconds, "too many")) == f"too many; try again in {words}"


def test_only_so_many_callers_are_remembered() -> None:
    rates = Rates(callers=100, clock=Clock())
    for number in range(1_000):
        rates.take(str(number), 1)
    assert len(rates._full_at) == 100
    assert rates.take("999", 1) > 0
    assert rates.take("0", 1) == 0


def test_a_bounded_log_counts_what_it_leaves_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded = BoundedLog(logging.getLogger("test"), rate=1.0)
    clock = Clock()
    monkeypatch.setattr(bounded, "_rates", Rates(10.0, clock=clock))
    for number in range(100):
        bounded.warning("refused %d", number)
    assert len(caplog.records) == 10
    clock.now = 1.0
    bounded.warning("refused %d", 100)
    assert caplog.records[-1].message == "refused 100 (and 90 more since the last such line)"


HASHES = [hashlib.sha256(bytes([number])).hexdigest() for number in range(3)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"shop {HASHES[1]}", "not 2 fields"),
        (f"shop {HASHES[1]} read 5 5", "not 5 fields"),
        (f"sh/op {HASHES[1]} read", "the name must be"),
        (f"{'x' * 65} {HASHES[1]} read", "the name must be"),
        ("shop secret read", "the hash must be"),
        (f"s/e/c/r/e/t {HASHES[1]} read", "the name must be"),
        (f"shop {HASHES[1]} secret", "a scope must be read or admin"),
        (f"shop {HASHES[1]} read secret", "the rate must be a number"),
        (f"shop {HASHES[1].upper()} read", "the hash must be"),
        (f"shop {HASHES[1]} write", "a scope must be read or admin"),
        (f"shop {HASHES[1]} read,", "a scope must be read or admin"),
        (f"shop {HASHES[1]} read many", "the rate must be a number"),
        (f"shop {HASHES[1]} read 0", "a rate limit must lie between"),
        (f"shop {HASHES[1]} read nan", "a rate limit must lie between"),
        (f"first {HASHES[1]} read", "has the name of line 2"),
        (f"shop {HASHES[0]} read", "has the hash of line 2"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# names\nfirst {HASHES[0]} read # a comment\n\n{line}\n")
    with pytest.raises(ValueError, match="tokens, line 4: ") as caught:
        read_tokens(path)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)  # which may be a token that was put there by mistake
    assert "s/e/c/r/e/t" not in str(caught.value)


def test_of_tokens_added_at_once_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    added = [new_token(f"caller{number}", ["read"]) for number in range(40)]
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda each: append_token(path, each[1]), added))
    tokens = read_tokens(path)
    assert all(tokens.find(secret) == token for secret, token in added)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokens"]


def test_a_token_is_found_by_itself_alone_with_what_its_line_says(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    first, described = new_token("first", ["read", "admin"], 2.5)
    second, other = new_token("second", ["admin"])
    path.write_text(f"{described.line()}")  # and no newline at its end
    append_token(path, other)
    tokens = read_tokens(path)
    assert tokens.find(first) == described
    assert tokens.find(second) == other
    assert described.scopes == {Scope.READ, Scope.ADMIN}
    assert (described.rate, other.rate, tokens.have_rates) == (2.5, None, True)
    for wrong in ("", "x", first + "x", first[:-1], HASHES[0], described.digest.hex()):
        assert tokens.find(wrong) is None
    assert len(first) > 50
    assert new_token("first", ["read"])[0] != first


def test_a_tokens_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    secret, token = new_token("shop", ["read"])
    path = tmp_path / "tokens"
    path.write_text(f"{token.line()}\n", encoding="utf-8-sig")
    assert read_tokens(path).find(secret) == token


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("broken\n")
    with pytest.raises(ValueError, match=r"tokens, line 1: must be a name"):
        append_token(path, new_token("shop", ["read"])[1])
    assert path.read_text() == "broken\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokens"]


def test_watched_files_are_read_when_they_change_and_only_then(tmp_path: Path) -> None:
    path, reads = tmp_path / "file", []

    def read() -> int:
        reads.append(1)
        return int(path.read_text())

    path.write_text("1")
    watched = Watched([path], read)
    assert not watched.refresh()
    path.write_text("22")
    assert watched.refresh()
    assert (watched.value, len(reads)) == (22, 2)
    path.write_text("broken")
    assert not watched.refresh()
    assert not watched.refresh()
    assert (watched.value, len(reads)) == (22, 3)
    path.unlink()
    assert not watched.refresh()
    path.write_text("333")
    assert watched.refresh()
    assert watched.value == 333


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError(errno.EMFILE, "Too many open files"), "Too many open files"), (MemoryError(), "Memory")],
)
def test_a_watched_file_that_could_not_be_read_for_a_while_is_read_again_though_it_looks_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, words: str
) -> None:
    path, failing = tmp_path / "watched", [False]

    def read() -> int:
        if failing[0]:
            raise error
        return int(path.read_text())

    path.write_text("1")
    watched = Watched([path], read)
    failing[0] = True
    path.write_text("22")
    for _ in range(3):
        assert not watched.refresh()
    (told,) = caplog.messages
    assert words in told
    failing[0] = False
    assert watched.refresh()
    assert watched.value == 22
    assert not watched.refresh()


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:4711", "address 192.0.2.1"),
        ("ipv6:%5B::1%5D:4711", "address ::/64"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:4711", "address 2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2::9%5D:1", "address 2001:db8:1:2::/64"),
        ("ipv6:[::ffff:192.0.2.1]:4711", "address 192.0.2.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "address fe80::/64"),
    ],
)
def test_an_address_is_without_its_port_and_of_ipv6_the_network(peer: str, address: str) -> None:
    assert gate.address_of(peer) == address


def test_only_loopback_addresses_are_loopback() -> None:
    for host in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "", "192.0.2.1", "2001:db8::1", "no.such.host.invalid", "no..name", "[::1]"):
        assert not is_loopback(host)


@pytest.mark.parametrize("access", [AccessConfig(), AccessConfig(insecure_public=True)])
def test_what_stands_for_no_address_is_refused_as_such(access: AccessConfig) -> None:
    for host in ("no.such.host.invalid", "no..name", "unix:/tmp/socket", "127.0.0.1:80"):
        with pytest.raises(ValueError, match=f"^{host} is no address, nor a name .*: choose another with --host$"):
            access.check_address(host, admin=False)
    with pytest.raises(ValueError, match=r"^\[::1\] is no address, .*: write it without brackets, --host ::1$"):
        access.check_address("[::1]", admin=False)
    access.check_address("::1", admin=False)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AccessConfig(tls_cert=Path("c")), "belong together"),
        (lambda: AccessConfig(tls_key=Path("k")), "belong together"),
        (lambda: AccessConfig(tls_client_ca=Path("a")), "needs --tls-cert and --tls-key"),
        (lambda: AccessConfig(rate_limit=0), "between 0.001 and 1,000,000"),
        (lambda: AccessConfig(rate_limit=float("inf")), "between 0.001 and 1,000,000"),
        (lambda: AccessConfig(connections=0), "connections must lie between"),
        (lambda: AccessConfig(calls_per_connection=0), "calls per connection must lie between"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(make: Callable[[], AccessConfig], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
