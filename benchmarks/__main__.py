"""Runs every benchmark that needs nothing but what is here, one after another, and says how to get the others.

`make bench` is this. Each has more options of its own: `python -m benchmarks.NAME --help`.
"""

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

_APT = {"h2load": "nghttp2-client"}


@dataclass(frozen=True)
class Benchmark:
    """One of them.

    Attributes:
        name: of its module.
        programs: what must be on the path.
        model: whether it measures a published model.
        gpu: whether it is about a GPU.
        by_hand: why it is left to be run by hand, and how; empty for what runs here.
    """

    name: str
    programs: tuple[str, ...] = ()
    model: bool = False
    gpu: bool = False
    by_hand: str = ""

    def left_out(self, models_dir: Path) -> str:
        """Why it cannot be run here, and what would help; empty where it can."""
        if self.by_hand:
            return self.by_hand
        for program in self.programs:
            if shutil.which(program) is None:
                return f"needs {program} (apt-get install {_APT[program]})"
        if self.gpu and not torch.cuda.is_available():
            return "needs a GPU, and torch sees none"
        if self.model and not any(models_dir.glob("[0-9]*")):
            return f"needs a published model in {models_dir} (make demo leaves one)"
        return ""


BENCHMARKS = (
    Benchmark("unary_recommend", ("h2load",), model=True),
    Benchmark("unary_recommend --cpp-echo", by_hand="needs apt-get install g++ pkg-config libgrpc++-dev"),
    Benchmark("batch_recommend", model=True),
    Benchmark("latency", ("h2load",), model=True),
    Benchmark("overload", ("h2load",), model=True),
    Benchmark("expiring_calls", ("h2load",), model=True),
    Benchmark("short_deadlines", model=True),
    Benchmark("swaps", ("h2load",), model=True),
    Benchmark("loadtest_agreement", ("h2load",), model=True),
    Benchmark("workers", ("h2load",), model=True),
    Benchmark("index_libraries"),
    Benchmark("index_tuning --items 40000"),
    Benchmark("batch_search --users 1000000 --items 100000"),
    Benchmark("scale --users 1000000 --items 100000"),
    Benchmark("fold_in"),
    Benchmark("gpu_gather", gpu=True),
    Benchmark("milvus", by_hand="needs Milvus in an environment of its own: `python -m benchmarks.milvus --help`"),
    Benchmark("ials_epoch --ncf ncf-ml-1m.zip", by_hand="needs pip install '.[bench]' and the files of NCF's ML-1M"),
    Benchmark("quality --ncf ncf-ml-1m.zip", by_hand="takes an hour, and the files of NCF's ML-1M"),
)


def main() -> int:
    """Runs what can be run; exits with 1 if one of these failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models-dir", type=Path, default=Path("models"))
    options = parser.parse_args()
    left_out, failed = [], []
    for benchmark in BENCHMARKS:
        if reason := benchmark.left_out(options.models_dir):
            left_out.append(f"  python -m benchmarks.{benchmark.name}: {reason}")
            continue
        print(f"\n== {benchmark.name}", flush=True)
        command = [sys.executable, "-m", *f"benchmarks.{benchmark.name}".split()]
        if benchmark.model:
            command += ["--models-dir", str(options.models_dir)]
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(benchmark.name)
    print("\nleft out:", *left_out, sep="\n")
    if failed:
        print("failed:", ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
