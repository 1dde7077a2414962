"""What the threads of a server keep of the memory that calls take."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shortlist_client import Client
from tests.reliability.processes import children, served

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

_HEAP_OF_ARROW = 1 << 30
"""Bytes that mimalloc reserves at once."""

_HEAP_IN_USE = """
import ctypes, threading

class Heap(ctypes.Structure):
    names = ("arena", "free", "fast", "maps", "mapped", "unused", "fast_bytes", "used", "free_bytes", "top")
    _fields_ = [(name, ctypes.c_size_t) for name in names]

def used():
    look = ctypes.CDLL(None).mallinfo2
    look.restype = Heap
    heap = look()
    return heap.used + heap.mapped

def print_kept(count, work):
    begun, end = used(), threading.Event()

    def run(done):
        work()
        done.set()
        end.wait()

    for _ in range(count):
        done = threading.Event()
        threading.Thread(target=run, args=(done,)).start()
        done.wait()
    print(used() - begun)
    end.set()
"""

_EVERY_THREAD_MULTIPLIES = f"""
{_HEAP_IN_USE}
from shortlist_server.heap import share_what_libraries_allocate

share_what_libraries_allocate(many_threads=True)

import torch

items, users = torch.ones(1_682, 50), torch.ones(20, 50)
scores = torch.empty(20, 1_682)
print_kept(10, lambda: torch.mm(users, items.T, out=scores))
"""

_EVERY_THREAD_ALLOCATES = f"""
{_HEAP_IN_USE}
from shortlist_server.heap import share_one_heap

share_one_heap()

c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def allocate():
    for piece in [c.malloc(size) for size in range(16, 1_024, 16) for _ in range(7)]:
        c.free(piece)

print_kept(40, allocate)
"""


@pytest.mark.parametrize("lane", ["fast", "plain"])
def test_arrow_keeps_no_heap_of_its_own(small_models: Path, tmp_path: Path, lane: str) -> None:
    with served(small_models, tmp_path / "log", "--lane", lane) as server, Client(server.address) as client:
        assert len(client.recommend("u0").items) == 10
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    # From, to, rights, offset, device and inode: then the name of a file, if there is one.
    nameless = re.findall(r"^(\w+)-(\w+) rw\S+ \S+ \S+ 0 *$", maps, re.MULTILINE)
    assert max(int(end, 16) - int(begin, 16) for begin, end in nameless) < _HEAP_OF_ARROW


def test_threads_that_have_multiplied_keep_no_buffers() -> None:
    command = [sys.executable, "-c", _EVERY_THREAD_MULTIPLIES]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # as a server has it
    kept = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=env).stdout)
    assert kept < 2_000_000  # 1 to 5 MB each otherwise, by the processor


def test_threads_that_have_freed_what_they_took_keep_nothing_of_it() -> None:
    command = [sys.executable, "-c", _EVERY_THREAD_ALLOCATES]
    kept = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert kept < 1_000_000  # a quarter of a megabyte each otherwise


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_has_one_heap_beside_what_else_is_asked_of_the_c_library(
    small_models: Path, tmp_path: Path, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.perturb=0")
    with served(small_models, tmp_path / "log", "--workers", workers) as server:
        for pid in {server.process.pid, *children(server.process.pid)}:
            environment = Path(f"/proc/{pid}/environ").read_text()
            for asked in ("glibc.malloc.perturb=0", "glibc.malloc.arena_max=1", "glibc.malloc.tcache_count=0"):
                assert environment.count(asked) == 1
