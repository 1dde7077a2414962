"""Hands memory on among the workers of a server, so that what all of them need is there once.

Memory is a file descriptor: Linux counts who has it, in whatever process, and frees the memory with the last one. One
process, which lives longer than the workers, keeps a descriptor of each table and knows nothing of what is in it
(``Exchange``). A worker asks by connecting to it (``Lease``):

    worker                        exchange
    <key>              ->
                       <-         b"make"             nobody has it: the worker makes it, and answers
    b"made" + fd       ->
                       <-         b"take" + fd        somebody has made it, perhaps only now

The connection stays open for as long as the worker uses the table: it ends by itself when the worker dies, however it
does. When the one that was to make a table is gone without having made it, the next one that waits makes it. When
all are gone, so is the memory. Nothing is pickled, and what connects is of the same user: the socket lies in a folder
that others cannot enter.
"""

import contextlib
import logging
import os
import selectors
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

LONGEST_KEY = 512
"""Bytes in UTF-8."""

_MAKE, _MADE, _TAKE = b"make", b"made", b"take"
_NO_DESCRIPTORS_SECONDS = 0.1


@dataclass
class _Table:
    """What is known of a table.

    Attributes:
        descriptor: of its memory; None before it is made.
        peers: those that have it or wait for it, the one that makes it first.
    """

    descriptor: int | None = None
    peers: list[socket.socket] = field(default_factory=list)


class Exchange:
    """Keeps the descriptors of tables while any worker uses them.

    Raises:
        OSError: no socket can be made.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="shortlist-tables-"))  # for this user alone
        self.path = self._folder / "exchange"
        self._tables: dict[str, _Table] = {}
        self._keys: dict[socket.socket, str] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind(str(self.path))
            self._listener.listen(128)
        except OSError:
            self._listener.close()
            shutil.rmtree(self._folder)
            raise
        self._wakes, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for source in (self._listener, self._wakes):
            source.setblocking(False)
            self._selector.register(source, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="tables", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Lets go of every table; workers that have one keep it."""
        self._waker.close()
        self._thread.join()
        for key in [*self._selector.get_map().values()]:
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()
        for table in self._tables.values():
            if table.descriptor is not None:
                os.close(table.descriptor)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                source = key.fileobj
                assert isinstance(source, socket.socket)
                if source is self._wakes:
                    return
                if source is self._listener:
                    self._accept()
                else:
                    self._hear(source)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError as error:
            log.warning("a worker cannot share tables: %s", error)
            threading.Event().wait(_NO_DESCRIPTORS_SECONDS)  # too many open files, and it goes on asking
            return
        peer.setblocking(False)
        self._selector.register(peer, selectors.EVENT_READ)

    def _hear(self, peer: socket.socket) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(peer, LONGEST_KEY + 1, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            message, descriptors = b"", []
        key = self._keys.get(peer)
        if key is None and 0 < len(message) <= LONGEST_KEY and not descriptors:
            self._join(peer, message.decode(errors="replace"))
        elif key is not None and message == _MADE and descriptors and self._makes(peer, key):
            self._made(key, descriptors.pop())
        else:
            self._part_with(peer)
        for descriptor in descriptors:
            os.close(descriptor)

    def _makes(self, peer: socket.socket, key: str) -> bool:
        table = self._tables[key]
        return table.descriptor is None and table.peers[0] is peer

    def _join(self, peer: socket.socket, key: str) -> None:
        self._keys[peer] = key
        table = self._tables.setdefault(key, _Table())
        table.peers.append(peer)
        if table.descriptor is not None:
            self._tell(peer, _TAKE, table.descriptor)
        elif len(table.peers) == 1:
            self._tell(peer, _MAKE)

    def _made(self, key: str, descriptor: int) -> None:
        table = self._tables[key]
        table.descriptor = descriptor
        for peer in table.peers[1:]:
            self._tell(peer, _TAKE, descriptor)

    def _tell(self, peer: socket.socket, message: bytes, *descriptors: int) -> None:
        try:
            socket.send_fds(peer, [message], descriptors)
        except OSError:  # it is gone, which is heard next
            log.debug("a worker that asked for a table is gone")

    def _part_with(self, peer: socket.socket) -> None:
        self._selector.unregister(peer)
        key = self._keys.pop(peer, None)
        peer.close()
        if key is None:
            return
        table = self._tables[key]
        was_making = table.descriptor is None and table.peers[0] is peer
        table.peers.remove(peer)
        if not table.peers:
            del self._tables[key]
            if table.descriptor is not None:
                os.close(table.descriptor)
        elif was_making:
            self._tell(table.peers[0], _MAKE)


class Lease:
    """A worker's part in a table; to be closed when the worker uses it no more.

    Args:
        path: where the exchange listens.
        key: of the table; equal keys must mean equal contents.
        patience_seconds: how long another worker may take to make it.

    Raises:
        OSError: the exchange is gone, or the table was not made in time.
    """

    def __init__(self, path: Path, key: str, patience_seconds: float) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._connection.settimeout(patience_seconds)
            self._connection.connect(str(path))
            self._connection.send(key.encode())
            message, descriptors, _, _ = socket.recv_fds(self._connection, 16, 1, socket.MSG_CMSG_CLOEXEC)
            if message not in (_MAKE, _TAKE) or len(descriptors) != (message == _TAKE):
                raise ConnectionError("the process that started the workers keeps no tables any more")
        except OSError:
            self._connection.close()
            raise
        self.descriptor = descriptors[0] if descriptors else None
        """Of the table's memory, for the caller to close; None where the caller is the one to make it."""

    def made(self, descriptor: int) -> None:
        """Hands a table on that is complete; the descriptor stays the caller's.

        Raises:
            OSError: the exchange is gone.
        """
        socket.send_fds(self._connection, [_MADE], [descriptor])

    def close(self) -> None:
        """Says that the table is used no more, or will not be made."""
        self._connection.close()


@contextmanager
def exchange_for(device: str) -> Iterator[Exchange | None]:
    """The exchange of a server's workers while they run.

    Args:
        device: as ``--device`` has it. None on the CPU, where workers share the pages of the file itself.
    """
    exchange = None
    if not device.startswith("cpu"):
        try:
            exchange = Exchange()
        except OSError as error:
            log.warning("each worker will have a copy of the user table of its own on a GPU: %s", error)
    with contextlib.closing(exchange) if exchange is not None else contextlib.nullcontext():
        yield exchange
