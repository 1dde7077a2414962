"""What tests of the device share: marks, a process that is talked to, and a network without training."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

_WHY = "torch sees none" if torch.version.cuda else "this torch is for the CPU alone"
NEEDS_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason=f"needs a GPU: {_WHY}")
WITHOUT_A_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


class Talker:
    """A Python process that is told lines and answers each by a line of JSON."""

    def __init__(self, program: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: object) -> None:
        """Tells it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Its next answer."""
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@contextmanager
def talking(program: str, *arguments: object) -> Iterator[Talker]:
    """A process of a program, killed at the end."""
    talker = Talker(program, *arguments)
    try:
        yield talker
    finally:
        talker.process.kill()
        talker.process.wait(60)
        for pipe in (talker.process.stdin, talker.process.stdout):
            assert pipe is not None
            pipe.close()


def network(rng: np.random.Generator, users: int = 20, items: int = 30) -> dict[str, npt.NDArray[np.float32]]:
    """NeuMF with random weights, as ranker.safetensors has it."""
    shapes: dict[str, tuple[int, ...]] = {
        "bias": (1,),
        "mlp.slope": (1,),
        "mlp.user_embeddings": (users, 4),
        "mlp.item_embeddings": (items, 4),
        "gmf.user_embeddings": (users, 3),
        "gmf.item_embeddings": (items, 3),
        "mlp.layers.0.weight": (6, 8),
        "mlp.layers.0.bias": (6,),
        "mlp.layers.1.weight": (1, 6),
        "mlp.layers.1.bias": (1,),
    }
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
