"""Memory that several processes can map, each by a file descriptor: a GPU's, and for comparison the host's.

A GPU's is made by CUDA's functions for virtual memory (CUDA Driver API, "Virtual Memory Management"): physical memory
lives as long as any process has it mapped or has a descriptor of it, whoever made it.
"""

import logging
import math
import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

log = logging.getLogger(__name__)


class SharedMemory(Protocol):
    """Makes and maps memory as tensors, which keep it mapped."""

    def make(self, shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[torch.Tensor, int]:
        """New memory, of no particular content, and a descriptor of it, for the caller to close.

        Raises:
            torch.OutOfMemoryError: there is no room for it.
            RuntimeError: the device cannot share memory.
            OSError: the system cannot.
            ImportError: what it takes is not installed.
        """
        ...

    def map(self, descriptor: int, shape: Sequence[int], dtype: np.dtype[Any]) -> torch.Tensor:
        """Memory that another process made; the descriptor stays the caller's.

        Raises:
            As ``make``.
        """
        ...


class HostMemory:
    """The host's, by memfd_create(2): what tests exchange where there is no GPU."""

    def make(self, shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[torch.Tensor, int]:
        """As ``SharedMemory`` says."""
        descriptor = os.memfd_create("shortlist-table")
        try:
            os.ftruncate(descriptor, _size(shape, dtype))
            return self.map(descriptor, shape, dtype), descriptor
        except BaseException:
            os.close(descriptor)
            raise

    def map(self, descriptor: int, shape: Sequence[int], dtype: np.dtype[Any]) -> torch.Tensor:
        """As ``SharedMemory`` says."""
        pages = mmap.mmap(descriptor, _size(shape, dtype))  # refuses a file that is smaller
        return torch.from_numpy(np.frombuffer(pages, dtype).reshape(shape))


class CudaMemory:
    """A GPU's.

    Args:
        device: the GPU, with its number.

    Raises:
        ImportError: NVIDIA's bindings of the driver (package cuda-bindings) are not installed.
    """

    def __init__(self, device: torch.device) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._device = device
        self._kind = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        self._properties = driver.CUmemAllocationProp()
        self._properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._properties.location.id = device.index
        self._properties.requestedHandleTypes = self._kind
        self._access = driver.CUmemAccessDesc()
        self._access.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._access.location.id = device.index
        self._access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE

    def make(self, shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[torch.Tensor, int]:
        """As ``SharedMemory`` says."""
        with self._context():
            block, descriptor = self.create(_size(shape, dtype))
            try:
                return self._tensor(block, shape, dtype), descriptor
            except BaseException:
                os.close(descriptor)
                raise

    def map(self, descriptor: int, shape: Sequence[int], dtype: np.dtype[Any]) -> torch.Tensor:
        """As ``SharedMemory`` says."""
        with self._context():
            return self._tensor(self.open(descriptor, _size(shape, dtype)), shape, dtype)

    @contextmanager
    def _context(self) -> Iterator[None]:
        """Makes torch's context this thread's: the driver's functions work in that, and do not make one."""
        with torch.cuda.device(self._device):
            torch.cuda.current_stream(self._device).query()  # any call that needs one
            yield

    def create(self, size: int) -> tuple["Block", int]:
        """New memory of so many bytes, mapped, and a descriptor of it; needs a current CUDA context."""
        padded = self._padded(size)
        handle = self._call("cuMemCreate", padded, self._properties, 0)
        try:
            descriptor = int(self._call("cuMemExportToShareableHandle", handle, self._kind, 0))
            try:
                return self._mapped(handle, padded), descriptor
            except BaseException:
                os.close(descriptor)
                raise
        finally:
            self._call("cuMemRelease", handle)  # what is mapped stays, and so does what has a descriptor

    def open(self, descriptor: int, size: int) -> "Block":
        """Memory of so many bytes that another process created, mapped; needs a current CUDA context."""
        handle = self._call("cuMemImportFromShareableHandle", descriptor, self._kind)
        try:
            return self._mapped(handle, self._padded(size))
        finally:
            self._call("cuMemRelease", handle)

    def _padded(self, size: int) -> int:
        minimum = self._driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        granularity = int(self._call("cuMemGetAllocationGranularity", self._properties, minimum))
        return -(-size // granularity) * granularity

    def _mapped(self, handle: object, padded: int) -> "Block":
        with ExitStack() as undo:
            address = self._call("cuMemAddressReserve", padded, 0, 0, 0)
            undo.callback(self._call, "cuMemAddressFree", address, padded)
            self._call("cuMemMap", address, padded, 0, handle, 0)
            undo.callback(self._call, "cuMemUnmap", address, padded)
            self._call("cuMemSetAccess", address, padded, [self._access], 1)
            return Block(int(address), undo.pop_all())

    def _call(self, name: str, *arguments: object) -> Any:
        """Calls a function of the driver; its result, where there is one."""
        status, *results = getattr(self._driver, name)(*arguments)
        if status == self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise torch.OutOfMemoryError(f"{name}: no room on {self._device}")
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{name}: {status.name}")
        return results[0] if results else None

    def _tensor(self, block: "Block", shape: Sequence[int], dtype: np.dtype[Any]) -> torch.Tensor:
        array = _CudaArray(block.address, shape, dtype)
        # At the end of the process it is unmapped without us.
        weakref.finalize(array, _unmap, block, self._device).atexit = False
        tensor: torch.Tensor = torch.as_tensor(array, device=self._device)  # keeps the array, and does not copy
        if tensor.data_ptr() != block.address:
            raise RuntimeError("torch has copied what it was to use where it is")
        return tensor


@dataclass(frozen=True)
class Block:
    """Memory of a GPU that is mapped into this process.

    Attributes:
        address: where, on the GPU.
        mapping: unmaps it when it is closed.
    """

    address: int
    mapping: ExitStack


class _CudaArray:
    """What torch takes an array on a GPU from (CUDA Array Interface, version 3), C-contiguous."""

    def __init__(self, address: int, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        # Torch takes nothing that is read-only; nobody writes.
        self.__cuda_array_interface__ = {
            "shape": tuple(shape),
            "typestr": dtype.str,
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def _unmap(block: Block, device: torch.device) -> None:
    try:
        with torch.cuda.device(device):
            torch.cuda.synchronize()  # unmapping does not wait for what still reads
            block.mapping.close()
    except RuntimeError as error:  # of a GPU that is lost, where nothing can be given back
        log.warning("a table could not be unmapped: %s", error)


def _size(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    return math.prod(shape) * dtype.itemsize
