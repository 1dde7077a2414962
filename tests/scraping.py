"""Scrapes of a real server over HTTP."""

import time
import urllib.request
from collections.abc import Callable

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

_PATIENCE_SECONDS = 20


class Scrape:
    """What one scrape brought.

    Args:
        url: where the metrics are.
    """

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        self.families: list[Metric] = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of all samples of this name that have these labels."""
        return sum(
            sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    def series(self, name: str) -> int:
        """How many samples there are of this name."""
        return sum(sample.name == name for sample in self.samples)


def patiently(happened: Callable[[], bool]) -> None:
    """Waits until something has happened: a call is counted and logged just after it is answered."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def scrape_until(url: str, there: Callable[[Scrape], bool]) -> Scrape:
    """Scrapes until something is there: a call is counted just after it is answered, the load once a second."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        scrape = Scrape(url)
        if there(scrape):
            return scrape
        assert time.monotonic() < deadline, [sample for sample in scrape.samples if not sample.name.endswith("_bucket")]
        time.sleep(0.05)
