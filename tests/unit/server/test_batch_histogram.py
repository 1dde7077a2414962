"""A histogram that takes many observations at once."""

from prometheus_client import CollectorRegistry, Histogram

from shortlist_server.telemetry.metrics import BatchHistogram


def test_many_observations_at_once_are_what_they_are_one_by_one() -> None:
    amounts = [0.5, 1.0, 1.0, 1.5, 2.0, 3.0, 100.0]  # on bounds, between them and beyond the last
    buckets = (1.0, 2.0, 4.0)
    at_once = BatchHistogram("h", "h", buckets=buckets, registry=CollectorRegistry())
    at_once.observe_many(amounts)
    one_by_one = Histogram("h", "h", buckets=buckets, registry=CollectorRegistry())
    for amount in amounts:
        one_by_one.observe(amount)
    assert [family.samples for family in at_once.collect()] == [family.samples for family in one_by_one.collect()]
