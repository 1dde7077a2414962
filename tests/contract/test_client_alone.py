"""``pip install .`` with no extra: the client works where torch, FAISS, numpy and pandas are absent."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The oldest versions that pyproject.toml promises, and whatever is newest.
VERSIONS: dict[str, list[str]] = {
    "oldest": ["grpcio==1.70.0", "grpcio-status==1.70.0", "protobuf==5.29.6"],
    "newest": [],
}

ASK = """
import importlib.util, sys
for absent in ("torch", "faiss", "numpy", "pandas", "sklearn", "pyarrow", "safetensors", "tqdm"):
    assert importlib.util.find_spec(absent) is None, absent
from shortlist_client import Client, InvalidArgument, UserNotFound
with Client(sys.argv[1], timeout_seconds=10) as client:
    print(*[item.id for item in client.recommend("u0", k=3, attributes=["title"]).items])
    try:
        client.recommend("nobody")
    except UserNotFound as error:
        print(error.resource_name)
    try:
        client.recommend("u0", k=0)
    except InvalidArgument as error:
        print(*error.violations)
"""


@pytest.fixture(scope="module", params=VERSIONS)
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the base install and nothing else."""
    folder = tmp_path_factory.mktemp(request.param)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install: list[str | Path] = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, str(ROOT), *VERSIONS[request.param]], check=True, capture_output=True)
    return Path(folder / "bin" / "python")


@pytest.mark.timeout(300)
def test_the_base_install_asks_a_server(python: Path, small_server: str) -> None:
    asked = subprocess.run([python, "-c", ASK, small_server], capture_output=True, text=True, check=False, cwd="/")
    assert asked.returncode == 0, asked.stderr
    items, unknown, field = asked.stdout.splitlines()
    assert len(items.split()) == 3
    assert (unknown, field) == ("nobody", "k")


@pytest.mark.timeout(300)
def test_commands_that_need_more_say_which_extra_brings_it(python: Path, small_server: str) -> None:
    command = python.parent / "shortlist"
    for question in (["recommend", "u0"], ["health"]):
        asked = subprocess.run([command, *question, "--server", small_server], capture_output=True, check=False)
        assert asked.returncode == 0
    for arguments, extra in ((["train", "--data", "x"], "trainer"), (["serve"], "server")):
        result = subprocess.run([command, *arguments], capture_output=True, text=True, check=False, cwd="/")
        assert result.returncode == 1
        assert f"pip install 'shortlist[{extra}]' brings it" in result.stderr
