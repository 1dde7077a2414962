"""Fixtures of the tests with real servers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shortlist_client.main import main
from tests.loadtesting import Load
from tests.running import serving
from tests.versions import publish_one


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """A models folder with version 1."""
    publish_one(tmp_path / "models", seed=1)
    return tmp_path / "models"


@pytest.fixture(scope="module")
def server(small_models: Path) -> Iterator[str]:
    """The address of a server of ``small_models``: what is asked is the same for either lane."""
    with serving(small_models) as app:
        yield app.address


@pytest.fixture
def load(small_models: Path, tmp_path: Path) -> Load:
    """Runs the command; gives its exit status and figures."""

    def run(address: str, *options: str) -> tuple[int, dict[str, Any]]:
        file = tmp_path / "figures.json"
        fixed = ("--models-dir", str(small_models), "--json", str(file), "--warmup", "0.2")
        status = main(["loadtest", "--server", address, *fixed, *options])
        return status, json.loads(file.read_text())

    return run
