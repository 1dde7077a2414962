"""Puts tables where a device works on them: for a GPU into its memory, once for all workers of a server."""

import logging
import os
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from shortlist_server.device.exchange import Lease
from shortlist_server.device.memory import CudaMemory, HostMemory, SharedMemory

log = logging.getLogger(__name__)

Table = npt.NDArray[np.floating]

_BLOCK_BYTES = 64 << 20
"""So much is copied at once: what callers ask of the GPU meanwhile gets its turn in between."""

_PATIENCE_SECONDS = 60.0
"""A worker waits for another one's table for so long."""

_CHECKED_ROWS = 1024
"""Rows of a shared table, from all over it, that a worker compares with its own file."""


class DeviceTables:
    """Tables of one device.

    Args:
        device: the device, a GPU with its number.
        exchange: where workers exchange tables; None where each has its own.
    """

    def __init__(self, device: torch.device | str, exchange: Path | None = None) -> None:
        self.device = torch.device(device)
        self._exchange = exchange
        self._memory: SharedMemory | None = None

    @property
    def in_place(self) -> bool:
        """Whether tables are used where they are, mapped from their files: what workers share without our doing."""
        return self.device.type == "cpu" and self._exchange is None

    def place(self, name: str, fingerprint: str, table: Table) -> torch.Tensor:
        """A table on the device; nobody may write to it.

        Args:
            name: what it is called in the log.
            fingerprint: of its file. Where name and fingerprint are equal, the table must be.
            table: any shape, float32 or float16, C-contiguous.

        Raises:
            torch.OutOfMemoryError: there is no room for it.
            RuntimeError: the device does not work.
        """
        if self.in_place:
            return torch.from_numpy(table)
        if self._exchange is not None and table.nbytes > 0:
            try:
                return self._shared(self._exchange, name, fingerprint, table)
            except torch.OutOfMemoryError:
                raise  # nor is there room for one more
            except Exception as error:  # whatever it is, it shall not keep a version from answering
                log.warning(
                    "%s cannot be shared with the other workers, so this one has its own copy on %s: %s: %s",
                    *(name, self.device, type(error).__name__, error),
                    exc_info=True,
                )
        tensor = torch.empty(table.shape, dtype=torch.from_numpy(table[:0]).dtype, device=self.device)
        _fill(tensor, table)
        return tensor

    def _shared(self, exchange: Path, name: str, fingerprint: str, table: Table) -> torch.Tensor:
        if self._memory is None:
            self._memory = CudaMemory(self.device) if self.device.type == "cuda" else HostMemory()
        lease = Lease(exchange, f"{self.device} {name} {fingerprint}", _PATIENCE_SECONDS)
        made = lease.descriptor is None
        try:
            tensor = (self._make if made else self._map)(self._memory, lease, table)
        except BaseException:
            lease.close()
            raise
        weakref.finalize(tensor, lease.close)
        log.info("%s is on %s once for all workers, %s", name, self.device, "by this one" if made else "by another one")
        return tensor

    def _make(self, memory: SharedMemory, lease: Lease, table: Table) -> torch.Tensor:
        tensor, descriptor = memory.make(table.shape, table.dtype)
        try:
            _fill(tensor, table)
            lease.made(descriptor)
        finally:
            os.close(descriptor)
        return tensor

    def _map(self, memory: SharedMemory, lease: Lease, table: Table) -> torch.Tensor:
        assert lease.descriptor is not None
        try:
            tensor = memory.map(lease.descriptor, table.shape, table.dtype)
        finally:
            os.close(lease.descriptor)
        rows = np.linspace(0, len(table) - 1, min(len(table), _CHECKED_ROWS), dtype=np.int64)
        if tensor[torch.from_numpy(rows).to(self.device)].cpu().numpy().tobytes() != table[rows].tobytes():
            raise RuntimeError("what another worker shared is not this table")
        return tensor


def tables_on(where: DeviceTables | torch.device | str) -> DeviceTables:
    """Tables on a device, each process with its own where nothing else is said."""
    return where if isinstance(where, DeviceTables) else DeviceTables(where)


def _fill(tensor: torch.Tensor, table: Table) -> None:
    """Copies a table into a tensor of its shape, and returns when it is there."""
    source = torch.from_numpy(table)
    rows = max(1, _BLOCK_BYTES // max(1, table[:1].nbytes))
    if tensor.device.type != "cuda":
        tensor.copy_(source)
        return
    # Not on the stream that answers: gathers would wait for all of it.
    stream = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(tensor.device))  # for what used this memory before
    with torch.cuda.stream(stream):
        for begin in range(0, len(table), rows):
            tensor[begin : begin + rows].copy_(source[begin : begin + rows])
    stream.synchronize()
