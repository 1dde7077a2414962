"""Workers that have their tables once: real processes over a real model, which exchange the host's memory here.

On a GPU the same happens with the GPU's memory (tests/gpu).
"""

import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shortlist_client import Client
from shortlist_server.device.exchange import Exchange
from shortlist_server.model.folder import LoadedModel, load_model
from shortlist_server.model.store import ModelStore
from shortlist_server.model.versions import State
from shortlist_server.retrieval.queries import RecommendQuery
from shortlist_trainer.models.base import Ranker
from tests.devices import WITHOUT_A_GPU, network, talking
from tests.running import only, server_process, shortlist
from tests.small_world import publish_embeddings, random_dataset, random_embeddings

WORKER = """
import json, logging, sys
from pathlib import Path
from shortlist_server.device.tables import DeviceTables
from shortlist_server.model.plan import Policy
from shortlist_server.model.store import ModelStore
from shortlist_server.retrieval.queries import RecommendQuery

logging.basicConfig(level=logging.WARNING)
store = ModelStore(Path(sys.argv[1]), DeviceTables("cpu", Path(sys.argv[2])), Policy(keep=0))
for command in map(str.strip, sys.stdin):
    if command == "refresh":
        store.refresh()
    queries = [RecommendQuery(user, rerank=rerank) for user in ("u1", "u7") for rerank in (False, True)]
    answers = store.default().recommender.recommend(queries)
    mapped = {line.split()[4] for line in open("/proc/self/maps") if "memfd:shortlist-table" in line}
    print(json.dumps({
        "version": store.default().version,
        "answers": [[answer.rows.tolist(), [round(float(score), 4) for score in answer.scores]] for answer in answers],
        "mapped": sorted(mapped),
    }), flush=True)
"""


@pytest.fixture
def models(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A models folder with one version, which has a network."""
    publish(tmp_path / "models", rng)
    return tmp_path / "models"


def publish(models_dir: Path, rng: np.random.Generator) -> Path:
    dataset = random_dataset(users=20, items=60, per_user=5, rng=rng)
    embeddings = random_embeddings(20, 60, 8, rng)
    return publish_embeddings(models_dir, dataset, embeddings, ranker=Ranker("neumf", network(rng, 20, 60)))


def plain_answers(folder: Path) -> list[Any]:
    """As a worker gives them, by a model that shares nothing."""
    recommender = load_model(folder, "cpu").recommender
    queries = [RecommendQuery(user, rerank=rerank) for user in ("u1", "u7") for rerank in (False, True)]
    answers = [only([answer]) for answer in recommender.recommend(queries)]
    return [[answer.rows.tolist(), [round(float(score), 4) for score in answer.scores]] for answer in answers]


def test_workers_answer_from_one_table_through_deaths_and_swaps(models: Path, rng: np.random.Generator) -> None:
    exchange = Exchange()
    with ExitStack() as stack:
        stack.callback(exchange.close)
        workers = [stack.enter_context(talking(WORKER, models, exchange.path)) for _ in range(2)]
        for worker in workers:  # both at once: one makes each table, the other waits for it
            worker.ask("refresh")
        first, second = (worker.hear() for worker in workers)
        assert first == second
        assert first["answers"] == plain_answers(models / "1")
        assert len(first["mapped"]) == 5  # the users, and the network's users and items, twice each

        dead, alive = workers
        dead.process.kill()
        dead.process.wait(20)
        alive.ask("answer")
        assert alive.hear() == first
        again = stack.enter_context(talking(WORKER, models, exchange.path))
        again.ask("refresh")
        assert again.hear() == first  # the same memory, whoever made it

        publish(models, rng)
        for worker in (alive, again):
            worker.ask("refresh")
        swapped = [worker.hear() for worker in (alive, again)]
        assert swapped[0] == swapped[1]
        assert swapped[0]["version"] == 2
        assert swapped[0]["answers"] == plain_answers(models / "2") != first["answers"]
        assert not {*swapped[0]["mapped"]} & {*first["mapped"]}  # what the old version had is let go by both
        assert len(swapped[0]["mapped"]) == 5
    assert not exchange._tables


def test_a_version_that_finds_no_room_is_refused_with_the_reason_and_the_old_one_goes_on(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models / "1", models / "2")
    manifest = models / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "1"', '"version": "2"'))
    room = False

    def fits_once(folder: Path, *others: Any) -> LoadedModel:
        if folder.name == "2" and not room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.38 GiB at 0x7f")  # as torch has it
        return load_model(folder, *others)

    monkeypatch.setattr("shortlist_server.model.shelf.load_model", fits_once)
    store = ModelStore(models, "cpu")
    assert store.refresh()
    assert store.default().version == 1
    refused = store.version(2)
    assert refused.state is State.FAILED
    assert refused.reason == "its tables do not fit into the memory of cpu beside what is loaded"
    room = True
    store.refresh()
    assert store.default().version == 1  # it is not read at every look
    monkeypatch.setattr("time.monotonic", lambda now=time.monotonic: now() + 61)
    store.refresh()
    assert store.default().version == 2


@WITHOUT_A_GPU
def test_serve_refuses_a_device_that_is_not_there(small_models: Path) -> None:
    refused = shortlist("serve", "--models-dir", str(small_models), "--device", "cuda:3", "--workers", "2")
    assert refused.returncode == 1
    assert "shortlist: the device 'cuda:3' cannot be used: " in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_supervisor_of_workers_exchanges_their_tables_unless_they_use_the_cpu(small_models: Path) -> None:
    with server_process(small_models, "--workers", "2", "--device", "auto") as (process, address):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        given = {
            Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0--tables\0")[1].split(b"\0")[0] for child in children
        }
        assert len(given) == 1
        path = Path(given.pop().decode())
        assert path.is_socket()
        with Client(address, timeout_seconds=10) as client:
            assert len(client.recommend("u0").items) == 10
        process.terminate()
        assert process.wait(30) == 0
        assert not path.parent.exists()
