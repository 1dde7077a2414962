"""The exchange of tables between workers: processes that ask, make, wait and die."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shortlist_server.device.exchange import LONGEST_KEY, Exchange, Lease, exchange_for
from tests.scraping import patiently

WORKER = """
import json, mmap, os, sys
from pathlib import Path
from shortlist_server.device.exchange import Lease

def say(**what):
    print(json.dumps(what), flush=True)

path, key, text = sys.argv[1:]
lease = Lease(Path(path), key, 20)
descriptor = lease.descriptor
say(makes=descriptor is None)
for command in map(str.strip, sys.stdin):
    if command == "make":
        descriptor = os.memfd_create("table")
        os.write(descriptor, text.encode())
        lease.made(descriptor)
        say(made=True)
    elif command == "read":
        say(text=os.pread(descriptor, 100, 0).decode(), inode=os.fstat(descriptor).st_ino)
    elif command == "close":
        os.close(descriptor)
        lease.close()
        say(closed=True)
"""


class Worker:
    """A process that asks for a table."""

    def __init__(self, exchange: Exchange, key: str = "table", text: str = "content") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(exchange.path), key, text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # an error that ends it is heard by its silence
            text=True,
        )

    def hear(self) -> dict[str, Any]:
        """What it says next."""
        assert self.process.stdout is not None
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        return said

    def tell(self, command: str) -> dict[str, Any]:
        """What it answers to a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self.hear()

    def kill(self) -> None:
        """By SIGKILL: it says good-bye to nobody."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)


@contextmanager
def ended(*workers: Worker) -> Iterator[None]:
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            assert worker.process.stdin is not None
            assert worker.process.stdout is not None
            worker.process.stdin.close()
            worker.process.stdout.close()


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    exchange = Exchange()
    yield exchange
    exchange.close()


def until(true: Callable[[], bool]) -> bool:
    """Whether it becomes true within ten seconds."""
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def memfds() -> int:
    """How many memory files this process has open."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum("memfd:" in str(link.readlink()) for link in links)


def test_what_one_worker_makes_those_that_wait_and_those_that_come_later_have(exchange: Exchange) -> None:
    first = Worker(exchange)
    with ended(first):
        assert first.hear() == {"makes": True}
        second, other = Worker(exchange), Worker(exchange, "another table", "another")
        with ended(second, other):
            assert other.hear() == {"makes": True}  # nobody waits for another table
            other.tell("make")
            first.tell("make")
            assert second.hear() == {"makes": False}
            third = Worker(exchange)
            with ended(third):
                assert third.hear() == {"makes": False}
                read = [worker.tell("read") for worker in (second, third)]
                assert read[0] == read[1]
                assert read[0]["text"] == "content"
                assert len(exchange._tables) == 2


def test_when_the_one_that_makes_a_table_is_killed_the_next_makes_it(exchange: Exchange) -> None:
    first, second, third = (started_in_turn(exchange, place, f"by {place}") for place in range(3))
    with ended(second, third):
        with ended(first):
            assert first.hear() == {"makes": True}
        assert second.hear() == {"makes": True}
        second.tell("make")
        assert third.hear() == {"makes": False}
        assert third.tell("read")["text"] == "by 1"


def started_in_turn(exchange: Exchange, place: int, text: str) -> Worker:
    """A worker that asks after so many others."""
    worker = Worker(exchange, text=text)
    assert until(lambda: peers(exchange) == place + 1)
    return worker


def peers(exchange: Exchange) -> int:
    """How many processes have the table or wait for it."""
    table = exchange._tables.get("table")
    return 0 if table is None else len(table.peers)


def test_a_worker_that_cannot_make_a_table_leaves_it_to_the_next(exchange: Exchange) -> None:
    lease = Lease(exchange.path, "table", 10)
    assert lease.descriptor is None
    second = started_in_turn(exchange, 1, "by the next")
    with ended(second):
        lease.close()
        assert second.hear() == {"makes": True}


def test_a_table_outlives_the_one_that_made_it_and_ends_with_the_last_that_has_it(exchange: Exchange) -> None:
    before = memfds()
    first = Worker(exchange)
    with ended(first):
        assert first.hear() == {"makes": True}
        first.tell("make")
        second = Worker(exchange)
        assert second.hear() == {"makes": False}
    with ended(second):  # the first has been killed
        assert second.tell("read")["text"] == "content"
        third = Worker(exchange)
        with ended(third):
            assert third.hear() == {"makes": False}
            assert third.tell("read") == second.tell("read")
            assert third.tell("close") == {"closed": True}  # as a worker does that unloads the version
            assert until(lambda: peers(exchange) == 1)
        assert (len(exchange._tables), memfds()) == (1, before + 1)
    assert until(lambda: not exchange._tables)
    patiently(lambda: memfds() == before)  # they are closed after the callers are told
    again = Lease(exchange.path, "table", 10)
    assert again.descriptor is None  # it is to be made anew
    again.close()


def test_what_makes_no_sense_is_parted_with_and_harms_nobody(exchange: Exchange) -> None:
    maker = Lease(exchange.path, "table", 10)
    before = memfds()
    descriptor = os.memfd_create("uncalled-for")
    for messages in (
        [b"k" * (LONGEST_KEY + 1)],
        [b"table", b"made"],  # it is not the one to make it
        [b"table", b"other"],
        [b"\xff\xfe", b"made"],  # it is, and hands nothing on
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(10)
            peer.connect(str(exchange.path))
            for message in messages:
                socket.send_fds(peer, [message], [descriptor] if message == b"made" and messages[0] == b"table" else [])
            while peer.recv(16):  # what it is told before it is parted with
                pass
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:  # a key does not come with memory
        peer.settimeout(10)
        peer.connect(str(exchange.path))
        socket.send_fds(peer, [b"table"], [descriptor])
        assert peer.recv(16) == b""
    os.close(descriptor)
    patiently(lambda: memfds() == before)  # they are closed after the callers are told
    second = started_in_turn(exchange, 1, "")
    with ended(second):
        own = os.memfd_create("table")
        os.write(own, b"content")
        maker.made(own)
        assert second.hear() == {"makes": False}
        assert second.tell("read")["text"] == "content"
        os.close(own)
    maker.close()


def test_a_worker_does_not_wait_for_ever_nor_for_an_exchange_that_is_gone() -> None:
    exchange = Exchange()
    making = Lease(exchange.path, "table", 10)
    with pytest.raises(TimeoutError):
        Lease(exchange.path, "table", 0.1)
    assert until(lambda: peers(exchange) == 1)
    waiting = Worker(exchange)
    with ended(waiting):
        assert until(lambda: peers(exchange) == 2)
        exchange.close()
        assert waiting.process.wait(20) == 1  # Lease raises
    descriptor = os.memfd_create("table")
    with pytest.raises(OSError, match="Broken pipe"):
        making.made(descriptor)
    os.close(descriptor)
    making.close()
    with pytest.raises(FileNotFoundError):
        Lease(exchange.path, "table", 10)


def test_nobody_else_can_enter_the_folder_and_nothing_is_left_of_it() -> None:
    with exchange_for("cuda") as exchange:
        assert exchange is not None
        folder = exchange.path.parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
    with exchange_for("cpu") as exchange:
        assert exchange is None


def test_where_there_is_no_room_for_a_socket_workers_start_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 120)  # longer than the path of a socket may be
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with exchange_for("auto") as exchange:
        assert exchange is None
    assert "a copy of the user table of its own" in caplog.text
    assert [*long.iterdir()] == []
