"""What a server says of itself, counted from its metrics."""

import pytest
from prometheus_client import Counter

from shortlist_server.telemetry.config import TelemetryConfig
from shortlist_server.telemetry.observer import Load
from shortlist_server.telemetry.recorder import Telemetry


def test_answers_of_many_versions_are_told_for_as_much_as_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    collect = Counter.collect
    collected: list[Counter] = []

    def counted(self: Counter) -> object:
        collected.append(self)
        return collect(self)

    telemetry = Telemetry(TelemetryConfig(), [])
    telemetry.start(Load)
    for version in range(1, 51):
        for query in ("recommend", "similar_items"):
            telemetry._metrics.answers[str(version), query].inc(version)
    telemetry._metrics.requests["Recommend", "OK"].inc(7)
    telemetry._metrics.requests["Recommend", "INTERNAL"].inc(2)
    telemetry._metrics.requests["Score", "NOT_FOUND"].inc()
    monkeypatch.setattr(Counter, "collect", counted)
    summary = telemetry.summary()
    telemetry.stop()
    assert summary.answers == {version: 2 * version for version in range(1, 51)}
    assert (summary.answered, summary.failed) == (7, 3)
    assert len(collected) == 2
