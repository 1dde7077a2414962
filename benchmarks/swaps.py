"""Latency of unary Recommend while versions are published and swapped, against the same load without: p50 to p99.9.

Versions are copies of the newest one under the next number, put into a copy of the models folder while calls come at
a fixed rate, whatever has been answered; each latency counts from when the call was due. Server and generator have a
core each. Rounds without swaps and with them alternate.
"""

import os
import shutil
import statistics
import tempfile
import threading
from pathlib import Path

import grpc
import numpy as np

from benchmarks.open_loop import call_at, due_times
from benchmarks.options import parser_for, request_of
from benchmarks.unary_recommend import GENERATOR_CORE, METHOD, load, pinned, require_generator, serve_command
from shortlist.v1 import model_pb2, model_pb2_grpc

PERCENTILES = (50, 90, 99, 99.9)


def main() -> None:
    """Prints the medians."""
    parser = parser_for(__doc__, rounds=3)
    parser.add_argument("--swaps", type=int, default=40, help="in a round")
    parser.add_argument("--seconds", type=float, default=1.0, help="between two of them")
    parser.add_argument("--share", type=float, default=0.3, help="of the rate of saturation")
    options = parser.parse_args()
    require_generator()
    os.sched_setaffinity(0, {GENERATOR_CORE})
    message = request_of(options).SerializeToString()
    measured: dict[str, list[list[float]]] = {"steady": [], "swapping": []}
    with tempfile.TemporaryDirectory() as folder:
        models_dir = Path(folder)
        newest = max(int(path.name) for path in options.models_dir.iterdir() if path.name.isdecimal())
        copy_version(options.models_dir / str(newest), models_dir / "1")
        with pinned(serve_command(models_dir)) as address:
            rate = load(address, message, 20_000) * options.share
            count = round(rate * options.swaps * options.seconds)
            for turn in range(options.rounds):
                for name, latencies in measured.items():
                    done = threading.Event()
                    swapping = threading.Thread(target=swap, args=(models_dir, options.seconds, done))
                    if name == "swapping":
                        swapping.start()
                    answered = call_at(address, METHOD, message, due_times(rate, count, turn))
                    done.set()
                    if name == "swapping":
                        swapping.join()
                    latencies.append([*np.percentile(answered.seconds * 1e6, PERCENTILES)])
            with grpc.insecure_channel(address) as channel:
                models = model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest()).models
            answering = max(model.version for model in models if model.default)
    print(f"{rate:,.0f} calls/s; {answering - 1} versions were swapped in, no call failed")
    print(f"{'':<12}" + "".join(f"{f'p{percentile:g}':>9}" for percentile in PERCENTILES) + "   (µs)")
    for name, latencies in measured.items():
        medians = [statistics.median(column) for column in zip(*latencies, strict=True)]
        print(f"{name:<12}" + "".join(f"{figure:>9,.0f}" for figure in medians))
    p99 = PERCENTILES.index(99)
    ratio = statistics.median(b[p99] / a[p99] for a, b in zip(*measured.values(), strict=True))
    print(f"p99 while swapping: {ratio:.2f} times that without")


def swap(models_dir: Path, seconds: float, done: threading.Event) -> None:
    """Publishes the newest version again under the next number, every so many seconds, and removes all but five."""
    while not done.wait(seconds):
        numbers = sorted(int(path.name) for path in models_dir.iterdir() if path.name.isdecimal())
        copy_version(models_dir / str(numbers[-1]), models_dir / str(numbers[-1] + 1))
        for number in numbers[:-4]:
            shutil.rmtree(models_dir / str(number))


def copy_version(source: Path, target: Path) -> None:
    """A version under another number, put in its place as publishing does."""
    aside = target.parent / f".aside-{target.name}"
    shutil.copytree(source, aside, copy_function=os.link if source.parent == target.parent else shutil.copy)
    manifest = (aside / "manifest.json").read_text()
    (aside / "manifest.json").unlink()
    (aside / "manifest.json").write_text(manifest.replace(f'"version": "{source.name}"', f'"version": "{target.name}"'))
    aside.rename(target)


if __name__ == "__main__":
    main()
