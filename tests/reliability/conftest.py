"""Size and randomness of the reliability suite: a short form for every run, a long one for `make test-reliability`."""

import gc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess as Process
from pathlib import Path

import numpy as np
import pytest

from tests.reliability.worlds import KINDS, publish_kinds

_LONGEST_SECONDS = 4 * 3600


@dataclass(frozen=True)
class Size:
    """How much a test does.

    Attributes:
        scale: of the long form; None for the short one.
    """

    scale: float | None

    def of(self, short: int, long: int) -> int:
        """How many of what the test repeats: the long form's times the scale, but never less than the short form's."""
        return short if self.scale is None else max(short, round(long * self.scale))


@pytest.fixture(params=["short", pytest.param("long", marks=[pytest.mark.slow, pytest.mark.timeout(_LONGEST_SECONDS)])])
def size(request: pytest.FixtureRequest) -> Size:
    """Each test runs in a short form, and in a long one that is marked slow."""
    return Size(request.config.getoption("--reliability-scale") if request.param == "long" else None)


@pytest.fixture(autouse=True)
def short_pauses() -> Iterator[None]:
    """Spares the collector what earlier tests have left: to walk it stops all that ask for a third of a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Of the run's seed and the test's name, so that a test alone draws what it draws among others."""
    seed: int = request.config.getoption("--reliability-seed")
    return np.random.default_rng([seed, zlib.crc32(request.node.nodeid.encode())])


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of version 1 with every kind of index, a network and clusters; nobody may change them."""
    return [publish_kinds(tmp_path_factory.mktemp("kinds"), *pair) for pair in KINDS]


@pytest.fixture(scope="module")
def start() -> Callable[..., Process]:
    """Starts a function in a process of its own, forked from one that has loaded the libraries already."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.reliability.worlds"])

    def start(function: Callable[..., None], *arguments: object) -> Process:
        process = context.Process(target=function, args=arguments)
        process.start()
        return process

    return start
