"""What is in deploy/, and the queries of its dashboard, alerts and autoscaler."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "shortlist.json"


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def dashboard_queries() -> Iterator[tuple[str, str]]:
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def other_queries() -> Iterator[tuple[str, str]]:
    for group in parsed(DEPLOY / "prometheus" / "alerts.yml")["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for rule in parsed(DEPLOY / "kubernetes" / "prometheus-adapter.yaml")["rules"]["custom"]:
        yield rule["name"]["as"], rule["seriesQuery"]
        yield rule["name"]["as"], rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", "")


QUERIES = [*dashboard_queries(), *other_queries()]
