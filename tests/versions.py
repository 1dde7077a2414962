"""Small versions, a server of them that looks often, and what answers."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shortlist_client import Client, ModelState
from shortlist_server.app import ServerApp
from shortlist_server.model import shelf
from shortlist_server.model.folder import LoadedModel
from shortlist_server.model.manifest import MANIFEST
from tests.running import serving
from tests.small_world import publish_embeddings, random_dataset, random_embeddings

ITEMS = 120
USERS = [f"u{user}" for user in range(40)]


def publish_one(models_dir: Path, seed: int = 0) -> int:
    """Publishes a version whose answers depend on the seed; returns its number."""
    rng = np.random.default_rng(seed)
    dataset = random_dataset(users=len(USERS), items=ITEMS, per_user=10, rng=np.random.default_rng(0))
    folder = publish_embeddings(models_dir, dataset, random_embeddings(len(USERS), ITEMS, 8, rng))
    return int(folder.name)


@contextmanager
def served(models_dir: Path, lane: str = "auto", **config: object) -> Iterator[tuple[ServerApp, Client]]:
    """A server that looks at its folder fifty times a second unless told otherwise, and a client of it."""
    with (
        serving(models_dir, lane, admin=True, **{"look_seconds": 0.02, **config}) as app,
        Client(app.address, timeout_seconds=20) as client,
    ):
        yield app, client


def answering(client: Client, user: str = "u0") -> int:
    """The version that answers a user."""
    return client.recommend(user).model_version


def states(client: Client) -> dict[int, ModelState]:
    """How far each version has come."""
    return {model.version: model.state for model in client.list_models()}


@contextmanager
def held_reading(monkeypatch: pytest.MonkeyPatch, version: int) -> Iterator[threading.Event]:
    """Reading this version begins, as the event tells, and ends only after the block."""
    begun, go = threading.Event(), threading.Event()
    load: Callable[..., LoadedModel] = vars(shelf)["load_model"]

    def held(path: Path, *others: Any) -> LoadedModel:
        if path.name == str(version):
            begun.set()
            assert go.wait(20)
        return load(path, *others)

    monkeypatch.setattr(shelf, "load_model", held)
    try:
        yield begun
    finally:
        go.set()


def change_manifest(folder: Path, **changes: object) -> None:
    """Changes fields of a manifest, whose own checksum it then lacks, as manifests of older versions do."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest.pop("manifest_sha256", None)
    (folder / MANIFEST).write_text(json.dumps(manifest | changes) + "\n")
