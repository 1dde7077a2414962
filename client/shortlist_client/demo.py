"""``shortlist demo``: MovieLens-100K from the archive to a running service, step by step, by the commands of users."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DATA = "ml-100k"
USER = "28"
FILM = "172"
_SHORTLIST = (sys.executable, "-m", "shortlist_client.main")
_START_TIMEOUT_SECONDS = 60


class _StepFailed(Exception):
    """A command of the demo did not succeed; it has said why."""


def run_demo(models_dir: Path) -> int:
    """Runs the demo and returns its exit status.

    Args:
        models_dir: where the model is published; a version that is there already is used as it is.
    """
    started = time.monotonic()
    try:
        _step(1, "data: MovieLens-100K")
        folder = Path(_command("data", "fetch", DATA).splitlines()[0].partition(" is in ")[2])
        _step(2, "train, evaluate and publish a model")
        if any(entry.name.isdecimal() for entry in models_dir.glob("*/")):
            _print(f"{models_dir} holds a model already; it is used as it is")
        else:
            _command("train", "--data", DATA, "--models-dir", str(models_dir))
        _step(3, "serve it over gRPC")
        with _server(models_dir) as address:
            _step(4, f"which items for user {USER}?")
            _print(f"who rated highest: {'; '.join(_favourites(folder, USER))}")
            _command("recommend", USER, "--server", address)
            _step(5, "what is like The Empire Strikes Back?")
            _command("similar", FILM, "--server", address)
            _step(6, "a short load test (client and server share this machine's cores)")
            load = ("--duration", "3", "--concurrency", "8", "--slo", "errors<0.1%")
            _command("loadtest", "--server", address, "--models-dir", str(models_dir), *load)
    except _StepFailed as error:
        sys.stderr.write(f"shortlist: the demo stopped at: {error}\n")
        return 1
    _summary(models_dir, time.monotonic() - started)
    return 0


def _command(*arguments: str) -> str:
    """Runs a command as a user would, shows what it prints and returns it."""
    _print(f"$ shortlist {' '.join(arguments)}")
    # A process of its own: the client must not load what the trainer needs.
    result = subprocess.run([*_SHORTLIST, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    _print(result.stdout.rstrip())
    if result.returncode:
        raise _StepFailed(" ".join(arguments))
    return result.stdout


def _favourites(folder: Path, user: str) -> list[str]:
    """Titles that the user gave five stars, so that a reader can judge what is recommended."""
    films = (line.split("|") for line in (folder / "u.item").read_text(encoding="latin-1").splitlines())
    titles = {fields[0]: fields[1] for fields in films}
    ratings = (line.split("\t") for line in (folder / "u.data").read_text().splitlines())
    return [titles[item] for rater, item, stars, _ in ratings if rater == user and stars == "5"][:8]


@contextmanager
def _server(models_dir: Path) -> Iterator[str]:
    """A server on a free port of loopback, stopped at the end; gives its address."""
    command = [*_SHORTLIST, "serve", "--models-dir", str(models_dir), "--port", "0"]
    _print(f"$ shortlist serve --models-dir {models_dir} --port 0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        stopper = threading.Timer(_START_TIMEOUT_SECONDS, process.kill)
        stopper.start()
        assert process.stdout is not None
        line = process.stdout.readline()  # "listening on HOST:PORT", or nothing when it could not start
        stopper.cancel()
        if not line:
            raise _StepFailed("serve")
        try:
            yield line.split()[-1]
        finally:
            process.terminate()


def _summary(models_dir: Path, seconds: float) -> None:
    newest = max((int(entry.name) for entry in models_dir.glob("*/") if entry.name.isdecimal()), default=0)
    _print(
        f"""
Done in {seconds:.0f} s; the server has been stopped.

  model       {models_dir / str(newest)}/  (manifest.json says how it was trained and how good it is)
  command     {Path(sys.executable).parent / "shortlist"}

Try next, in two terminals (source {Path(sys.executable).parent}/activate first):

  shortlist serve --models-dir {models_dir}
  shortlist recommend 196
  shortlist similar 1 -k 5
  shortlist models list
  shortlist train --data {DATA} --model mf --models-dir {models_dir}     # predicts ratings; publishes a new version
"""
    )


def _step(number: int, title: str) -> None:
    _print(f"\n[{number}/6] {title}")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
