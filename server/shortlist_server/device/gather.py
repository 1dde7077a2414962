"""Rows of a table on a device, by one copy there and one back."""

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_MOST_ROWS = 1 << 12
"""At once: page-locked memory is scarce, and each thread that asks keeps some."""
_FEWEST_ROWS = 1 << 8

_of_thread = threading.local()
"""Buffers by device, type and columns. They outlive tables: page-locking takes time, and a swap shall not."""


@dataclass(frozen=True)
class _Buffers:
    """Room for some rows, on the host and on the device. What is on the host is page-locked, for the device's own use.

    Attributes:
        rows, rows_on_device: (n,) int64.
        vectors, vectors_on_device: (n, d) of the table's type.
    """

    rows: torch.Tensor
    rows_on_device: torch.Tensor
    vectors: torch.Tensor
    vectors_on_device: torch.Tensor


class DeviceGather:
    """Gathers rows of a table. Several threads may at once: each has buffers of its own.

    Args:
        table: (n, d) float32 or float16 on the device.
    """

    def __init__(self, table: torch.Tensor) -> None:
        self._table = table

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self._table.device

    @torch.inference_mode()
    def __call__(self, rows: Int64Array) -> Float32Array:
        """(n, d) float32 on the CPU, the i-th for the i-th of ``rows`` (n,); each must be there.

        Raises:
            RuntimeError: the device fails. After a row that is not there a GPU fails for good.
        """
        gathered = np.empty((len(rows), self._table.shape[1]), dtype=np.float32)
        for begin in range(0, len(rows), _MOST_ROWS):
            block = slice(begin, begin + _MOST_ROWS)
            self._gather(rows[block], gathered[block])
        return gathered

    def _gather(self, rows: Int64Array, into: Float32Array) -> None:
        count = len(rows)
        buffers = self._buffers(count)
        asked, vectors = buffers.rows_on_device[:count], buffers.vectors_on_device[:count]
        buffers.rows[:count].numpy()[:] = rows
        asked.copy_(buffers.rows[:count], non_blocking=True)
        torch.index_select(self._table, 0, asked, out=vectors)
        buffers.vectors[:count].copy_(vectors, non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        into[:] = buffers.vectors[:count].numpy()  # float16 travels as it is

    def _buffers(self, count: int) -> _Buffers:
        """This thread's, with room for so many rows."""
        size, kind = self._table.shape[1], self._table.dtype
        every: dict[tuple[torch.device, torch.dtype, int], _Buffers] = _of_thread.__dict__.setdefault("buffers", {})
        buffers = every.get((self.device, kind, size))
        if buffers is None or len(buffers.rows) < count:
            room = max(_FEWEST_ROWS, 1 << (count - 1).bit_length())
            locked = self.device.type == "cuda"
            buffers = every[self.device, kind, size] = _Buffers(
                torch.empty(room, dtype=torch.int64, pin_memory=locked),
                torch.empty(room, dtype=torch.int64, device=self.device),
                torch.empty((room, size), dtype=kind, pin_memory=locked),
                torch.empty((room, size), dtype=kind, device=self.device),
            )
        return buffers
