"""A server under steady load: nothing fails, and neither memory nor latency grows."""

import time
from pathlib import Path

import numpy as np

from tests.reliability.conftest import Size
from tests.reliability.load import Load, Outcome
from tests.reliability.processes import anonymous_bytes, served

_SHARE = 0.7  # of saturation
_WORKERS = 16
_WINDOWS = 10
"""A third is judged by the median of the p99 of so many parts of it, which one pause of the machine does not move."""

USER_IDS = [f"u{number}" for number in range(30)]


def test_a_server_at_seven_tenths_of_saturation_answers_everything_as_fast_at_the_end_as_in_the_beginning(
    small_models: Path, tmp_path: Path, rng: np.random.Generator, size: Size
) -> None:
    with served(small_models, tmp_path / "log") as server:
        pid = server.process.pid
        with Load(server.address, USER_IDS, workers=_WORKERS) as flat_out:
            time.sleep(size.of(2, 20))
        assert flat_out.failures() == []
        saturation = len(flat_out.outcomes) / size.of(2, 20)
        seconds = size.of(10, 1_800)
        memory = []
        with Load(
            server.address, USER_IDS, workers=_WORKERS, rate=_SHARE * saturation, seed=int(rng.integers(1 << 32))
        ) as load:
            for _ in range(2 * _WINDOWS):
                time.sleep(seconds / (2 * _WINDOWS))
                memory.append(anonymous_bytes(pid))
        assert load.failures() == []
        assert server.process.poll() is None
        assert "Traceback" not in server.log.read_text()
    assert {one.version for one in load.outcomes} == {1}
    assert {len(one.item_ids) for one in load.outcomes} == {10}
    assert len(load.outcomes) > 0.9 * seconds * _SHARE * saturation
    # The collector of cycles lets memory go from time to time only: what it comes down to must not rise.
    assert min(memory[_WINDOWS:]) <= min(memory[2:_WINDOWS]) * 1.02
    in_order = sorted(load.outcomes, key=lambda one: one.sent)
    third = len(in_order) // 3
    first, last = p99(in_order[:third]), p99(in_order[-third:])
    # A short run on a busy machine says little of a p99.
    assert last <= (1.5 * first + 0.005 if size.scale is not None else 4 * first + 0.1), (first, last)


def p99(outcomes: list[Outcome]) -> float:
    """Seconds within which 99% are answered, the median of several parts."""
    parts = np.array_split([one.seconds for one in outcomes], _WINDOWS)
    return float(np.median([np.quantile(part, 0.99) for part in parts]))
