"""Fixtures of the tests with real servers."""

from pathlib import Path

import pytest

from tests.versions import publish_one


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """A models folder with version 1."""
    publish_one(tmp_path / "models", seed=1)
    return tmp_path / "models"
