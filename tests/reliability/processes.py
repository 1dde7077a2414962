"""Server processes that are killed and watched: what they use is read from /proc."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.running import SHORTLIST


@dataclass(frozen=True)
class Served:
    """A server process.

    Attributes:
        process: the process, a supervisor if there are workers.
        address: host:port.
        log: the file that its standard error goes to, which no pipe holds up.
    """

    process: subprocess.Popen[str]
    address: str
    log: Path

    @property
    def port(self) -> str:
        """What ``--port`` takes to listen where it listened."""
        return self.address.rpartition(":")[2]


@contextmanager
def served(models_dir: Path, log: Path, *arguments: str, port: str = "0") -> Iterator[Served]:
    """A server process that listens; it and its children are killed at the end, if they still run."""
    command = [*SHORTLIST, "serve", "--models-dir", str(models_dir), "--port", port, *arguments]
    family: set[int] = set()
    # Otherwise gRPC's core would write what callers send into the log as it came: docs/threat-model.md.
    env = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    with (
        log.open("a") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("listening on "), log.read_text()[-4_000:]
            family = children(process.pid)
            yield Served(process, line.split()[-1], log)
        finally:
            family |= children(process.pid)
            process.kill()
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def children(pid: int) -> set[int]:
    """The pids of a process's children."""
    try:
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except FileNotFoundError:
        return set()


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def anonymous_bytes(pid: int) -> int:
    """The memory that is a process's own: mapped models, which the kernel may drop, are not counted."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def open_files(pid: int) -> int:
    """How many file descriptors a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def thread_count(pid: int) -> int:
    """How many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits until something holds.

    Raises:
        AssertionError: it does not within the time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:g} s still not: {what}"
        time.sleep(0.05)
