"""Versions published and swapped under load: nothing fails, and every answer is that of the version it names."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shortlist_server.model.folder import load_model
from shortlist_server.retrieval.queries import RecommendQuery
from tests.reliability.conftest import Size
from tests.reliability.load import Load, Outcome
from tests.reliability.processes import served, wait_until
from tests.reliability.test_soak import in_order, p99
from tests.running import only
from tests.small_world import publish_embeddings, random_dataset, random_embeddings

USERS = [f"u{number}" for number in range(40)]
ITEMS = 300
KEPT = 4
"""Folders left in the models folder; a server may be reading the newest few."""

Answers = Mapping[str, tuple[str, ...]]


def test_versions_are_swapped_under_load_without_a_failure_a_mixture_or_a_pause(
    tmp_path: Path, rng: np.random.Generator, size: Size
) -> None:
    sources = [publish_one(tmp_path / f"source-{seed}", seed) for seed in (1, 2)]
    right = [answers_of(source) for source in sources]
    assert right[0] != right[1]
    models_dir = tmp_path / "models"
    models_dir.mkdir()
    put(sources[1], models_dir, 1)
    rounds, swaps = size.of(2, 10), size.of(6, 20)
    steady: list[list[Outcome]] = []
    swapped: list[list[Outcome]] = []
    number = 1
    with served(models_dir, tmp_path / "log", "--workers", "2") as server:
        for seed in rng.integers(1 << 32, size=rounds).tolist():
            # In turn, so that a machine that is slow for a minute is so for both.
            with Load(server.address, USERS, workers=8, rate=200, seed=seed) as load:
                time.sleep(size.of(2, 20))
            steady.append(answered(load))
            with Load(server.address, USERS, workers=8, rate=200, seed=seed + 1) as load:
                for _ in range(swaps):
                    number += 1
                    put(sources[number % 2], models_dir, number)
                    if number > KEPT:
                        shutil.rmtree(models_dir / str(number - KEPT))
                    wait_until(lambda n=number: newest(load) == n, 20, "it answers")  # type: ignore[misc]
                    time.sleep(float(rng.uniform(0, 0.6)))
                time.sleep(1)
            swapped.append(answered(load))
        assert server.process.poll() is None
        assert "Traceback" not in server.log.read_text()
    outcomes = [one for some in swapped for one in some]
    assert outcomes[-1].version == number
    for one in [*outcomes, *(one for some in steady for one in some)]:
        assert one.item_ids == right[one.version % 2][one.user_id]
    assert slowest_handover(outcomes) < 1
    assert len({one.version for one in outcomes}) > 0.9 * rounds * swaps
    # A short run on a busy machine says little of a p99.
    factor, room = (1.5, 0) if size.scale is not None else (4, 0.1)
    p99s = [
        (p99([in_order(before)]), p99([in_order(meanwhile)])) for before, meanwhile in zip(steady, swapped, strict=True)
    ]
    assert np.median([meanwhile - factor * before for before, meanwhile in p99s]) <= room, p99s


def answered(load: Load) -> list[Outcome]:
    """What became of a load's requests, all of them answered, in order."""
    assert load.failures() == []
    return sorted(load.outcomes, key=lambda one: one.sent)


def newest(load: Load) -> int:
    """The newest version that has answered lately."""
    return max((one.version for one in load.outcomes[-100:]), default=0)


def slowest_handover(outcomes: list[Outcome]) -> float:
    """For how long one worker went on answering by an older version than another, at most, in seconds."""
    slowest, newest, since = 0.0, 0, 0.0
    for one in sorted(outcomes, key=lambda one: one.sent + one.seconds):
        answered = one.sent + one.seconds
        if one.version > newest:
            newest, since = one.version, answered
        elif one.version < newest:
            slowest = max(slowest, answered - since)
    return slowest


def publish_one(models_dir: Path, seed: int) -> Path:
    """A version whose answers depend on the seed."""
    dataset = random_dataset(len(USERS), ITEMS, 20, np.random.default_rng(0))
    return publish_embeddings(
        models_dir, dataset, random_embeddings(len(USERS), ITEMS, 16, np.random.default_rng(seed))
    )


def answers_of(folder: Path) -> Answers:
    """What a version answers each user, by itself."""
    recommender = load_model(folder, "cpu").recommender
    return {
        user: tuple(recommender.item_ids.ids(only(recommender.recommend([RecommendQuery(user)])).rows))
        for user in USERS
    }


def put(source: Path, models_dir: Path, number: int) -> None:
    """Publishes a version again under another number, as publishing does: aside, then by renaming."""
    aside = models_dir / f".publishing-{number}"
    shutil.copytree(source, aside, copy_function=os.link)
    manifest = json.loads((source / "manifest.json").read_text())
    (aside / "manifest.json").unlink()
    (aside / "manifest.json").write_text(json.dumps({**manifest, "version": str(number)}) + "\n")
    aside.rename(models_dir / str(number))
