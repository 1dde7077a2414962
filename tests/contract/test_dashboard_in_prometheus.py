"""A real Prometheus that scrapes a real server as deploy/ says: every panel shows something, no alert misfires."""

import json
import math
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from shortlist.v1.recommender_pb2 import RecommendRequest
from shortlist_client import Client, Fallback, ShortlistError
from tests.deployed import DEPLOY, dashboard_queries, parsed
from tests.running import server_process
from tests.scraping import patiently
from tests.versions import publish_one

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus")

_SECONDS = 12.0
_CHOSEN = {"$job": ".*", "$instance": ".*", "$method": ".*", "$__rate_interval": "4s"}
"""What Grafana puts in the place of the dashboard's variables when nobody has chosen."""


class Prometheus:
    """One that runs, asked over its own API."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/"

    def get(self, path: str, **query: object) -> Any:
        """The data of an answer; raises urllib's HTTPError where it refuses."""
        with urllib.request.urlopen(f"{self._url}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def answers(self) -> bool:
        """Whether it has come so far."""
        try:
            return bool(self.get("rules")["groups"])
        except urllib.error.URLError:
            return False


def free_port() -> int:
    """One that nothing listens on; Prometheus does not tell which it has taken."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def prometheus(metrics_port: int, folder: Path) -> Iterator[Prometheus]:
    """Prometheus as deploy/ has it, but twenty times as often, and of a server on this machine."""
    config = parsed(DEPLOY / "prometheus" / "prometheus.yml")
    config["global"] = dict.fromkeys(config["global"], "500ms")
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{metrics_port}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", folder)
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/series",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            asked = Prometheus(port)
            patiently(asked.answers)
            yield asked
        finally:
            process.terminate()


def ask_for_everything(client: Client, models: Path) -> None:
    """Calls of every kind that a panel shows, for some seconds, with a version that comes midway."""
    client.set_label("canary", 1)
    end, turn, published = time.monotonic() + _SECONDS, 0, False
    while time.monotonic() < end:
        turn += 1
        if not published and time.monotonic() > end - _SECONDS / 2:
            publish_one(models, seed=2)
            published = True
        client.recommend(f"u{turn % 40}")
        client.similar_items([f"i{turn % 120}"])
        client.recommend("stranger", fallback=Fallback.POPULAR)
        client.recommend("u1", k=120)
        list(client.stream_recommend([("a", RecommendRequest(user_id="stranger"))]))
        with pytest.raises(ShortlistError):
            client.recommend("stranger")
        time.sleep(0.02)


def test_every_panel_shows_something_and_no_alert_fires_where_all_is_well(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for seed in range(2):
        publish_one(models, seed)
    metrics_port = free_port()
    options = ["--workers", "2", "--metrics-port", str(metrics_port), "--shadow", "canary", "--admin"]
    began = time.time()
    with (
        server_process(models, *options) as (_, address),
        prometheus(metrics_port, tmp_path) as asked,
        Client(address, timeout_seconds=10) as client,
    ):
        ask_for_everything(client, models)
        shown: dict[tuple[str, str], list[float]] = {}
        default: dict[float, dict[str, str]] = defaultdict(dict)
        for panel, query in dashboard_queries():
            filled = query
            for variable, value in _CHOSEN.items():
                filled = filled.replace(variable, value)
            found = asked.get("query_range", query=filled, start=began, end=time.time(), step=1)["result"]
            numbers = [float(value) for series in found for _, value in series["values"]]
            shown[panel, query] = [number for number in numbers if math.isfinite(number)]
            if panel == "Default version":
                for series in found:
                    for moment, workers in series["values"]:
                        default[moment][series["metric"]["version"]] = workers
        (group,) = asked.get("rules")["groups"]
        firing = [alert["labels"]["alertname"] for alert in asked.get("alerts")["alerts"] if alert["state"] == "firing"]
    empty = {asked_for for asked_for, numbers in shown.items() if not numbers}
    assert {panel for panel, query in empty if "shortlist_device_memory_bytes" not in query} == set()  # no GPU is here
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    assert firing == []
    told = {panel: numbers for (panel, _), numbers in shown.items()}
    assert max(told["Ready workers"]) == 2
    assert max(told["Failed"]) == 0
    # Workers that have it, of each version: within a second of each other they went on to the next, which a look each
    # half second sees twice at most.
    before, between, after = {"2": "2"}, {"2": "1", "3": "1"}, {"3": "2"}
    turns = [workers for _, workers in sorted(default.items())]
    mixed = turns.count(between)
    assert mixed <= 2
    assert turns == [before] * turns.count(before) + [between] * mixed + [after] * turns.count(after)
    assert before in turns
    assert after in turns
    assert min(told["Queries answered together"]) == 1
