"""Real servers for tests: in this process on a free port, or as a process of their own."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from shortlist_server.app import ServerApp
from shortlist_server.config import ServerConfig
from shortlist_server.errors import QueryError

P = ParamSpec("P")
T = TypeVar("T")

SHORTLIST = [sys.executable, "-m", "shortlist_client.main"]


class HeldSearch:
    """Callers' searches that begin and do not go on until they are let go, twenty seconds at most.

    Those that warm a model up, at the start or when a version is loaded, are not held.
    """

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._go = threading.Event()

    def let_go(self) -> None:
        """Lets the searches go on, those to come as well."""
        self._go.set()

    def around(self, search: Callable[P, T]) -> Callable[P, T]:
        """The search, held."""

        def held(*arguments: P.args, **named: P.kwargs) -> T:
            if threading.current_thread().name not in ("MainThread", "models"):
                self.begun.set()
                self._go.wait(20)
            return search(*arguments, **named)

        return held


def only(answers: Iterable[T | QueryError]) -> T:
    """The answer to the one query that was asked; raises what it failed with."""
    (answer,) = answers
    if isinstance(answer, QueryError):
        raise answer
    return answer


@contextmanager
def serving(models_dir: Path, lane: str = "auto", **config: Any) -> Iterator[ServerApp]:
    """A started server of this process, stopped at the end."""
    app = ServerApp(ServerConfig(models_dir=models_dir, port=0, device="cpu", lane=lane, **config))
    app.start()
    try:
        yield app
    finally:
        app.stop()


@contextmanager
def server_process(models_dir: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its address; killed at the end if it still runs."""
    command = [*SHORTLIST, "serve", "--models-dir", str(models_dir), "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line.startswith("listening on "), process.stderr.read() if process.stderr else ""
            yield process, line.split()[-1]
        finally:
            process.kill()


def shortlist(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a ``shortlist`` command to its end."""
    return subprocess.run(
        [*SHORTLIST, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
