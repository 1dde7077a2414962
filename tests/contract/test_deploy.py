"""What is in deploy/ against the server: metric names, labels, options, ports and probes are those that exist."""

import argparse
import json
import re
import shlex
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.samples import Sample

from shortlist.v1.recommender_pb2 import RecommendRequest
from shortlist_client import Client, UserNotFound
from shortlist_server.commands import add_commands
from shortlist_server.telemetry.config import TelemetryConfig
from shortlist_server.telemetry.endpoint import WorkersEndpoint
from shortlist_server.telemetry.observer import Load
from shortlist_server.telemetry.recorder import Telemetry
from tests.deployed import DASHBOARD, DEPLOY, QUERIES, ROOT, dashboard_queries, other_queries, parsed
from tests.running import serving
from tests.scraping import Scrape, scrape_until

# What Prometheus and Kubernetes add to every sample, and the one thing that is not a label.
ADDED_LABELS = {"job", "instance", "namespace", "pod"}


@pytest.fixture(scope="module")
def exported(small_models: Path) -> dict[str, list[Sample]]:
    """Every series that a server exports, by name: asked, with a GPU and a shadow, and with workers."""
    samples: dict[str, list[Sample]] = defaultdict(list)

    def keep(scrape: Scrape) -> None:
        for sample in scrape.samples:
            samples[sample.name].append(sample)

    with serving(small_models, telemetry=TelemetryConfig(metrics_port=0)) as app, Client(app.address) as client:
        with pytest.raises(UserNotFound):
            client.with_timeout(10).recommend("nobody")
        for user in ("u0", "u1"):
            client.with_timeout(10).recommend(user)
        client.similar_items(["i1"])
        list(client.stream_recommend([("a", RecommendRequest(user_id="nobody"))]))
        assert app.metrics_url is not None
        keep(scrape_until(app.metrics_url, lambda scrape: scrape.value("shortlist_requests_total", code="OK") == 4))
    with_gpu = Telemetry(TelemetryConfig(metrics_port=0), [])
    with_gpu.listen()
    assert with_gpu.metrics_url is not None
    with_gpu.start(lambda: Load(device_memory={"used": 1, "total": 2}))
    with_gpu.shadow_compared(2, [0.5], 0.001, 0.002)
    keep(scrape_until(with_gpu.metrics_url, lambda scrape: scrape.value("shortlist_device_memory_bytes") == 3))
    with_gpu.stop()
    workers = WorkersEndpoint("127.0.0.1", 0)
    keep(Scrape(workers.url))
    workers.close()
    return samples


def test_every_metric_and_label_of_a_query_is_one_that_the_server_exports(exported: dict[str, list[Sample]]) -> None:
    for where, query in QUERIES:
        names = set(re.findall(r"\bshortlist_\w+", query))
        assert names or query == 'up{job="shortlist"} == 0', where
        assert names <= exported.keys(), (where, names - exported.keys())
        labels = {label for name in names for sample in exported[name] for label in sample.labels}
        for grouping in re.findall(r"\bby \(([^)]*)\)", query):
            assert set(re.split(r",\s*", grouping)) <= labels | ADDED_LABELS, (where, grouping)
        for name, matchers in re.findall(r"\b(shortlist_\w+)\{([^}]*)\}", query):
            for label, operator, value in re.findall(r'(\w+)\s*(=~|!=|=)\s*"([^"]*)"', matchers):
                if label not in ADDED_LABELS and not value.startswith("$"):
                    known = {sample.labels[label] for sample in exported[name]}
                    known |= {code.name for code in grpc.StatusCode} if label == "code" else set()
                    values = value.split("|") if operator == "=~" else [value]
                    assert set(values) <= known, (where, label, value)


def test_a_quantile_is_taken_of_buckets_kept_apart(exported: dict[str, list[Sample]]) -> None:
    quantiles = [query for _, query in QUERIES if "histogram_quantile" in query]
    assert len(quantiles) > 10
    for query in quantiles:
        (name,) = re.findall(r"rate\(\s*(shortlist_\w+)", query)
        assert name.endswith("_bucket")
        assert all("le" in sample.labels for sample in exported[name])
        (grouping,) = re.findall(r"\bby \(([^)]*)\)", query)
        assert "le" in re.split(r",\s*", grouping), query


def test_every_metric_of_the_server_is_on_the_dashboard(exported: dict[str, list[Sample]]) -> None:
    shown = " ".join(query for _, query in dashboard_queries())
    families = {re.sub("_(bucket|count|sum)$", "", name) for name in exported}
    assert {family for family in families if family not in shown} == set()


def test_the_dashboard_is_one_that_grafana_draws_without_overlaps() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in {"row", "stat", "timeseries"}
        position = panel["gridPos"]
        cells = {
            (column, line)
            for column in range(position["x"], position["x"] + position["w"])
            for line in range(position["y"], position["y"] + position["h"])
        }
        assert max(column for column, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        targets = panel.get("targets", [])
        assert len({target["refId"] for target in targets}) == len(targets)
        for target in targets:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables | {"__rate_interval"}
            assert 'job=~"$job", instance=~"$instance"' in target["expr"]


def test_every_alert_says_how_urgent_it_is_and_has_a_part_in_the_operations_page() -> None:
    (group,) = parsed(DEPLOY / "prometheus" / "alerts.yml")["groups"]
    headings = re.findall("^### (.*)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["alert"] in headings
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, which comes with Prometheus")
def test_alerts_fire_when_their_own_tests_say() -> None:
    tests = ["promtool", "test", "rules", "alerts_test.yml"]
    run = subprocess.run(tests, cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_dashboard_and_the_alert_count_the_same_failures() -> None:
    (shown,) = [query for where, query in dashboard_queries() if where == "Failed"]
    (told,) = [query for where, query in other_queries() if where == "ShortlistErrors"]
    failures = r'(shortlist_\w+)\{[^}]*code=~"INTERNAL\|UNKNOWN"\}'
    assert set(re.findall(failures, shown)) == set(re.findall(failures, told))


def started_with(arguments: list[str]) -> argparse.Namespace:
    """What the server makes of its arguments; fails where it does not know one."""
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    return parser.parse_args(arguments)


def image_command() -> list[str]:
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    command: list[str] = json.loads(entry)
    assert command[:2] == ["shortlist", "serve"]
    return command[1:]


def test_the_compose_file_starts_the_server_with_options_it_has_and_mounts_what_is_there() -> None:
    services = parsed(ROOT / "docker-compose.yml")["services"]
    options = started_with([*image_command(), *services["shortlist"]["command"]])
    assert services["shortlist"]["ports"] == [f"127.0.0.1:{options.port}:50051"]
    (scraped,) = parsed(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": [f"shortlist:{options.metrics_port}"]}]
    assert f'job="{scraped["job_name"]}"' in (DEPLOY / "prometheus" / "alerts.yml").read_text()
    assert float(services["shortlist"]["stop_grace_period"].removesuffix("s")) > (
        options.drain_seconds + options.grace_seconds
    )
    mounts = [mount for service in services.values() for mount in service["volumes"] if mount.startswith("./deploy")]
    assert len(mounts) == 3
    for mount in mounts:
        assert (ROOT / mount.split(":")[0]).exists(), mount
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    (provider,) = parsed(DEPLOY / "grafana" / "provisioning" / "dashboards" / "shortlist.yml")["providers"]
    assert any(f":{provider['options']['path']}/shortlist.json:" in mount for mount in mounts)


def test_the_unit_starts_the_server_with_options_it_has() -> None:
    unit = (DEPLOY / "systemd" / "shortlist.service").read_text().replace("\\\n", " ")
    (command,) = re.findall("^ExecStart=/opt/shortlist/bin/shortlist (.*)$", unit, re.MULTILINE)
    options = started_with(shlex.split(command))
    (stop,) = re.findall("^TimeoutStopSec=(.*)$", unit, re.MULTILINE)
    assert float(stop) > options.drain_seconds + options.grace_seconds


def test_the_manifests_agree_with_the_server_and_with_one_another(small_models: Path) -> None:
    files = parsed(DEPLOY / "kubernetes" / "kustomization.yaml")["resources"]
    manifests = {manifest["kind"]: manifest for manifest in (parsed(DEPLOY / "kubernetes" / name) for name in files)}
    pod = manifests["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    options = started_with([*image_command(), *container["args"]])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": options.port, "metrics": options.metrics_port}
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(options.metrics_port)
    asleep = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] > asleep + options.drain_seconds + options.grace_seconds
    with serving(small_models) as app, grpc.insecure_channel(app.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["grpc"]["port"] == options.port
            asked = health_pb2.HealthCheckRequest(service=container[probe]["grpc"]["service"])
            assert health.Check(asked, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
    start = container["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] > 600  # so long may a large model take to be read
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["spec"]["volumes"]
    }
    assert str(options.models_dir) in [mount["mountPath"] for mount in container["volumeMounts"]]
    claim = pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim == manifests["PersistentVolumeClaim"]["metadata"]["name"]

    labels = pod["metadata"]["labels"]
    job = f'job="{labels["app.kubernetes.io/name"]}"'
    for told in ("prometheus/alerts.yml", "kubernetes/README.md"):
        assert job in (DEPLOY / told).read_text()
    assert manifests["Service"]["spec"]["clusterIP"] == "None"
    for selector in (
        manifests["Service"]["spec"]["selector"],
        manifests["Deployment"]["spec"]["selector"]["matchLabels"],
        manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector == labels
    opened = {port["port"] for rule in manifests["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]}
    assert opened == ports.keys()
    scaler = manifests["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == manifests["Deployment"]["metadata"]["name"]
    (rule,) = parsed(DEPLOY / "kubernetes" / "prometheus-adapter.yaml")["rules"]["custom"]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"]
