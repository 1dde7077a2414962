"""What the threads of a server keep of the memory that calls take."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shortlist_client import Client
from tests.reliability.processes import served

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

_HEAP_OF_ARROW = 1 << 30
"""Bytes that mimalloc reserves at once."""

_EVERY_THREAD_MULTIPLIES = """
import ctypes, threading

from shortlist_server.heap import share_what_libraries_allocate

share_what_libraries_allocate(many_threads=True)

import torch

items, users = torch.ones(1_682, 50), torch.ones(20, 50)
scores = torch.empty(20, 1_682)
end = threading.Event()

class Heap(ctypes.Structure):
    names = ("arena", "free", "fast", "maps", "mapped", "unused", "fast_bytes", "used", "free_bytes", "top")
    _fields_ = [(name, ctypes.c_size_t) for name in names]

def used():
    look = ctypes.CDLL(None).mallinfo2
    look.restype = Heap
    heap = look()
    return heap.used + heap.mapped

def multiply(done):
    torch.mm(users, items.T, out=scores)
    done.set()
    end.wait()

begun = used()
for _ in range(10):
    done = threading.Event()
    threading.Thread(target=multiply, args=(done,)).start()
    done.wait()
print(used() - begun)
end.set()
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
    assert kept < 10_000_000  # 5 MB each otherwise
