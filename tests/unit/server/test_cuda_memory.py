"""How the driver of a GPU is called, by a stand-in over the host's memory that is as strict as the driver's reference.

What it shows is the calls, their order and what they leave behind, through NVIDIA's own bindings; that a GPU does as
the reference says is for tests/gpu to show.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, os, sys
import torch
from shortlist_server.device.memory import CudaMemory

SIZE = 5_000_000  # no whole number of pages
memory = CudaMemory(torch.device("cuda", 1))

def left():
    return sum("memfd:gpu" in line for line in open("/proc/self/maps")), len(os.listdir("/proc/self/fd"))
"""

SHARING = """
before = left()
block, descriptor = memory.create(SIZE)
ctypes.memmove(block.address, b"made", 4)
child = os.fork()
if child == 0:
    theirs = memory.open(descriptor, SIZE)
    ctypes.memmove(theirs.address + SIZE - 4, ctypes.string_at(block.address, 4), 4)
    os._exit(0)
os.waitpid(child, 0)
assert ctypes.string_at(block.address + SIZE - 4, 4) == b"made"
block.mapping.close()
assert left() == (before[0], before[1] + 1)  # the descriptor is the caller's
again = memory.open(descriptor, SIZE)  # and keeps the memory
os.close(descriptor)
assert ctypes.string_at(again.address, 4) == b"made"
again.mapping.close()
assert left() == before
"""

NO_ROOM = """
before = left()
os.environ["NO_ROOM"] = "1"
try:
    memory.create(SIZE)
except torch.OutOfMemoryError as error:
    assert "cuMemCreate: no room on cuda:1" in str(error)
else:
    raise AssertionError
assert left() == before
"""

REFUSED = """
block, descriptor = memory.create(SIZE)
before = left()
try:
    memory.open(descriptor, 2 * SIZE)
except RuntimeError as error:
    assert str(error) == "cuMemMap: CUDA_ERROR_INVALID_VALUE"
else:
    raise AssertionError
assert left() == before
os.environ["NO_ACCESS"] = "1"
for refused in (lambda: memory.create(SIZE), lambda: memory.open(descriptor, SIZE)):
    try:
        refused()
    except RuntimeError as error:
        assert str(error) == "cuMemSetAccess: CUDA_ERROR_INVALID_VALUE"
    else:
        raise AssertionError
    assert left() == before
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stand-in."""
    pytest.importorskip("cuda.bindings", reason="needs NVIDIA's bindings (package cuda-bindings)")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("cuda_driver_stand_in.c")
    command = [
        compiler,
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fPIC",
        "-o",
        str(folder / "libcuda.so.1"),
        str(source),
    ]
    subprocess.run(command, check=True)
    return folder


@pytest.mark.parametrize("part", [SHARING, NO_ROOM, REFUSED], ids=["sharing", "no room", "refused"])
def test_memory_is_shared_by_descriptors_and_nothing_is_left_of_it(driver: Path, part: str) -> None:
    """In a process of its own, which loads the stand-in in place of the driver."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM + part],
        env={**os.environ, "LD_LIBRARY_PATH": str(driver)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
