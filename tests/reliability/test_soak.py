"""A server under steady load: nothing fails, and neither memory nor latency grows."""

import gc
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.reliability.conftest import Size
from tests.reliability.load import Load, Outcome
from tests.reliability.processes import anonymous_bytes, served

_SHARE = 0.7  # of saturation
_WORKERS = 16
_PARTS = 10
"""A p99 is the median of those of so many parts of the time, which one pause of the machine does not move.

At seven tenths of saturation what a pause has held up is worked off at three tenths of it: answers are late for three
times as long as the pause, which must be less than half of the time.
"""

USER_IDS = [f"u{number}" for number in range(30)]


def test_a_server_at_seven_tenths_of_saturation_answers_everything_as_fast_at_the_end_as_in_the_beginning(
    small_models: Path, tmp_path: Path, rng: np.random.Generator, size: Size
) -> None:
    rounds, flat_out_seconds, seconds = size.of(3, 30), size.of(1, 6), size.of(8, 60)
    steady: list[np.ndarray] = []
    memory = []
    rates = []
    with served(small_models, tmp_path / "log") as server:
        for seed in rng.integers(1 << 32, size=rounds).tolist():
            # Before each round, as a machine that others share is not as fast all the time.
            rate = _SHARE * saturation(server.address, flat_out_seconds)
            with Load(server.address, USER_IDS, workers=_WORKERS, rate=rate, seed=seed) as load:
                for _ in range(_PARTS):
                    time.sleep(seconds / _PARTS)
                    memory.append(anonymous_bytes(server.process.pid))
                    # Else the collector would walk more and more outcomes, for .1 s a time at the end of a long round,
                    # and parts would tell how many such pauses they have had.
                    gc.freeze()
            assert load.failures() == []
            assert {one.version for one in load.outcomes} == {1}
            assert {len(one.item_ids) for one in load.outcomes} == {10}
            steady.append(in_order(load.outcomes))
            del load  # millions of outcomes would fill memory, and those of a round are not to be freed during the next
            rates.append(rate)
        rates.append(_SHARE * saturation(server.address, flat_out_seconds))
        assert server.process.poll() is None
        assert "Traceback" not in server.log.read_text()
    # The collector of cycles lets memory go from time to time only: what it comes down to must not rise.
    half = len(memory) // 2
    assert min(memory[half:]) <= min(memory[2:half]) * 1.02
    # Of what the machine could do before and after each round.
    assert sum(map(len, steady)) > 0.9 * seconds * sum(map(min, pairwise(rates)))
    third = rounds // 3
    first, last = p99(steady[:third]), p99(steady[-third:])
    # A short run on a busy machine says little of a p99.
    assert last <= (1.5 * first + 0.005 if size.scale is not None else 4 * first + 0.1), (first, last)


def saturation(address: str, seconds: int) -> float:
    """Requests/s that are answered when every worker asks again at once."""
    with Load(address, USER_IDS, workers=_WORKERS) as flat_out:
        time.sleep(seconds)
    assert flat_out.failures() == []
    return len(flat_out.outcomes) / seconds


def in_order(outcomes: list[Outcome]) -> np.ndarray:
    """The seconds that answers took, float64 [requests], in the order in which they were asked for."""
    return np.array([one.seconds for one in sorted(outcomes, key=lambda one: one.sent)])


def p99(rounds: list[np.ndarray]) -> float:
    """Seconds within which 99% are answered, the median of the parts of some rounds, each ``in_order``."""
    parts = [part for some in rounds for part in np.array_split(some, _PARTS)]
    return float(np.median([np.quantile(part, 0.99) for part in parts]))
