"""Which version answers whom: shares of the users, and a shadow that is asked the same."""

import shutil
from pathlib import Path

import pytest

from shortlist_client import Client, ModelState
from shortlist_server.service import shadow as shadow_module
from shortlist_server.service.shadow import Shadow
from shortlist_server.telemetry.config import TelemetryConfig
from tests.running import HeldSearch, serving, shortlist
from tests.scraping import Scrape, patiently, scrape_until
from tests.versions import USERS, answering, publish_one, served, states


def test_a_split_answers_its_share_of_the_users_and_always_the_same(models_dir: Path, lane: str) -> None:
    publish_one(models_dir, seed=2)
    splits = {"splits": ("canary=30",), "default_label": "stable"}
    with served(models_dir, lane, **splits) as (_, client):
        client.set_label("stable", 1)
        assert {answering(client, user) for user in USERS} == {1}  # nobody bears the label yet
        client.set_label("canary", 2)
        versions = {user: answering(client, user) for user in USERS}
        canaries = [user for user, version in versions.items() if version == 2]
        assert 4 <= len(canaries) <= 20
        batch = client.batch_recommend(USERS)
        assert [answer.model_version for answer in batch] == list(versions.values())  # type: ignore[union-attr]
        assert client.score(canaries[0], ["i0"]).model_version == 2
        assert client.get_cluster("user", member_id=canaries[0]).model_version == 2
        assert client.recommend(canaries[0], model_version=1).model_version == 1
        assert client.recommend(history=["i0"]).model_version == 1
        assert client.list_models().splits == {"canary": 30}
    with served(models_dir, lane, **splits) as (_, client):
        patiently(lambda: states(client) == {1: ModelState.READY, 2: ModelState.READY})
        assert {user: answering(client, user) for user in USERS} == versions


def test_a_shadow_is_asked_the_same_and_compared(models_dir: Path) -> None:
    shutil.copytree(models_dir / "1", models_dir / "2")
    manifest = models_dir / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "1"', '"version": "2"'))
    publish_one(models_dir, seed=3)
    telemetry = TelemetryConfig(metrics_port=0)
    with served(models_dir, keep=2, default_label="stable", shadow="next", telemetry=telemetry) as (app, client):
        client.set_label("stable", 1)
        before = {"answer": 0.0, "shadow": 0.0}
        for version, lowest, highest in ((2, 1.0, 1.0), (3, 0.0, 0.6)):
            client.set_label("next", version)
            for user in USERS:
                assert answering(client, user) == 1

            def compared(version: int = version) -> bool:
                shadow = client.list_models().shadow
                return shadow is not None and shadow.version == version and shadow.compared_requests == len(USERS)

            patiently(compared)
            shadow = client.list_models().shadow
            assert shadow is not None
            assert lowest <= shadow.mean_overlap <= highest
            assert shadow.mean_answer_micros > 0
            assert shadow.mean_shadow_micros > 0
            assert app.metrics_url is not None
            scrape = Scrape(app.metrics_url)
            overlaps = {
                part: scrape.value(f"shortlist_shadow_overlap_{part}", version=str(version))
                for part in ("count", "sum")
            }
            assert overlaps["count"] == len(USERS)
            assert overlaps["sum"] / len(USERS) == pytest.approx(shadow.mean_overlap)
            below = scrape.value("shortlist_shadow_overlap_bucket", version=str(version), le="0.99")
            assert below == 0 if version == 2 else below > 0
            took = {
                source: scrape.value("shortlist_shadow_duration_seconds_sum", source=source) - before[source]
                for source in before
            }
            before = {source: before[source] + took[source] for source in before}
            assert took["answer"] / len(USERS) * 1e6 == pytest.approx(shadow.mean_answer_micros, rel=0.01, abs=1)
            assert took["shadow"] / len(USERS) * 1e6 == pytest.approx(shadow.mean_shadow_micros, rel=0.01, abs=1)
            assert scrape.value("shortlist_shadow_skipped_total") == 0
        printed = shortlist("models", "list", "--server", client_target(client)).stdout
        assert "shadow next, version 3: 40 compared" in printed


def test_what_is_said_of_a_shadow_is_of_the_version_that_bears_its_label_now(models_dir: Path) -> None:
    for seed in (2, 3):
        publish_one(models_dir, seed)
    with served(models_dir, keep=2, default_label="stable", shadow="next") as (_, client):

        def shadow() -> tuple[int, int, float]:
            told = client.list_models().shadow
            assert told is not None
            return told.version, told.compared_requests, told.mean_shadow_micros

        client.set_label("stable", 2)
        assert shadow() == (0, 0, 0.0)
        client.set_label("next", 1)
        assert shadow() == (1, 0, 0.0)
        answering(client)
        patiently(lambda: shadow()[:2] == (1, 1))
        for version in (3, 2, None):
            client.set_label("next", version)
            assert shadow() == (version or 0, 0, 0.0)


def test_a_shadow_that_has_no_time_leaves_requests_out_and_says_how_many(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldSearch()
    monkeypatch.setattr(Shadow, "_compare", held.around(Shadow._compare))
    monkeypatch.setattr(shadow_module, "_BATCHES_WAITING", 1)
    with served(models_dir, shadow="next", telemetry=TelemetryConfig(metrics_port=0)) as (app, client):
        answering(client, "u0")
        assert held.begun.wait(10)
        for _ in range(3):  # the first of them waits
            answering(client, "u0")
        assert app.metrics_url is not None
        scrape_until(app.metrics_url, lambda scrape: scrape.value("shortlist_shadow_skipped_total") == 2)
        held.let_go()


def client_target(client: Client) -> str:
    target: str = client._channel._channel.target().decode().rpartition("/")[2]  # type: ignore[attr-defined]
    return target


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"splits": ("canary",)}, "a split must be LABEL=PERCENT"),
        ({"splits": ("canary=0",)}, "a split must be LABEL=PERCENT"),
        ({"splits": ("canary=nan",)}, "a split must be LABEL=PERCENT"),
        ({"splits": ("a=60", "b=50")}, "more than 100"),
        ({"splits": ("a=6", "a=5")}, "one split only"),
        ({"splits": ("A=6",)}, "a label must be"),
        ({"shadow": "../x"}, "a label must be"),
        ({"keep": -1}, "keep must lie between"),
    ],
)
def test_bad_traffic_settings_are_refused_at_the_start(
    models_dir: Path, config: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason), serving(models_dir, **config):  # type: ignore[arg-type]
        pass
