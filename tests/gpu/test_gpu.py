"""What only a GPU can show: `make test-gpu` on a machine that has one. Elsewhere everything here is skipped."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shortlist_client import Client
from shortlist_client.results import ModelState
from shortlist_server.device.choice import choose_device, memory_of
from shortlist_server.device.exchange import Exchange
from shortlist_server.device.gather import DeviceGather
from shortlist_server.device.tables import DeviceTables
from shortlist_server.retrieval.ranker import PADDING, Ranker
from shortlist_server.retrieval.user_embeddings import UserEmbeddings
from shortlist_trainer.models.base import Ranker as TrainedRanker
from tests.devices import NEEDS_A_GPU, Talker, network, talking
from tests.running import server_process
from tests.small_world import publish_embeddings, random_dataset, random_embeddings

pytestmark = NEEDS_A_GPU

LARGE_ROWS = 4 << 20  # of 64 columns: 1 GiB, which stands out of what each process needs for itself

SHARER = """
import json, sys
from pathlib import Path
import numpy as np, torch
from shortlist_server.device.choice import choose_device
from shortlist_server.device.tables import DeviceTables

rows = int(sys.argv[2])
table = np.arange(rows, dtype=np.float32)[:, None] + np.arange(64, dtype=np.float32) / 64
device = choose_device("cuda")
before = torch.cuda.mem_get_info(device)[0]
tensor = DeviceTables(device, Path(sys.argv[1])).place("users", "ab", table)
said = {
    "took": before - torch.cuda.mem_get_info(device)[0],
    "torch": torch.cuda.memory_allocated(device),
    "equal": bool((tensor.cpu() == torch.from_numpy(table)).all()),
}
print(json.dumps(said), flush=True)
for line in sys.stdin:
    print(json.dumps({"row": tensor[int(line)].tolist()[:2]}), flush=True)
"""


def row_of(sharer: Talker, row: int) -> list[float]:
    """The first values of a row of the table that a process has placed."""
    sharer.ask(row)
    values: list[float] = sharer.hear()["row"]
    return values


@pytest.fixture(scope="module")
def device() -> torch.device:
    return choose_device("cuda")


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    exchange = Exchange()
    yield exchange
    exchange.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_gathered_on_the_gpu_are_those_of_the_cpu(
    device: torch.device, rng: np.random.Generator, dtype: type[np.floating]
) -> None:
    table = rng.standard_normal((100_000, 64)).astype(dtype)
    on_gpu = UserEmbeddings(table, on_device=DeviceTables(device).place("users", "ab", table))
    for count in (0, 1, 256, 10_000):
        rows = rng.integers(0, len(table), count)
        np.testing.assert_array_equal(on_gpu.gather(rows), UserEmbeddings(table).gather(rows))
    assert on_gpu.device == device  # it has not come to answer from the CPU


def test_threads_that_gather_at_once_get_their_own_rows(device: torch.device, rng: np.random.Generator) -> None:
    table = rng.standard_normal((100_000, 64), dtype=np.float32)
    gather = DeviceGather(torch.from_numpy(table).to(device))

    def right(seed: int) -> bool:
        mine = np.random.default_rng(seed)
        asked = [mine.integers(0, len(table), 64) for _ in range(500)]
        return all(np.array_equal(gather(rows), table[rows]) for rows in asked)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, range(4)))


def test_candidates_ranked_on_the_gpu_score_as_on_the_cpu(device: torch.device, rng: np.random.Generator) -> None:
    tensors = network(rng, 500, 900)
    ranker = Ranker(tensors, lambda _, table: torch.from_numpy(table).to(device))
    users, items = rng.integers(0, 500, 70), rng.integers(0, 900, (70, 500))
    items[3, 400:] = PADDING
    scores = ranker.score(users, items)
    assert ranker.device == device
    assert ranker._on_cpu is None
    assert np.isneginf(scores[3, 400:]).all()
    np.testing.assert_allclose(scores, Ranker(tensors).score(users, items), rtol=1e-4, atol=1e-4)


def test_workers_have_a_table_in_the_gpu_s_memory_once(exchange: Exchange) -> None:
    size = LARGE_ROWS * 64 * 4
    with ExitStack() as stack:
        first = stack.enter_context(talking(SHARER, exchange.path, LARGE_ROWS))
        made = first.hear()
        assert made["equal"]
        assert size <= made["took"] < 1.5 * size
        assert made["torch"] < size / 2  # it is not in torch's own memory
        second = stack.enter_context(talking(SHARER, exchange.path, LARGE_ROWS))
        taken = second.hear()
        assert taken["equal"]
        assert taken["took"] < size / 2
        first.process.kill()  # who made it need not stay
        first.process.wait(60)
        assert row_of(second, LARGE_ROWS - 1)[0] == pytest.approx(LARGE_ROWS - 1)
        third = stack.enter_context(talking(SHARER, exchange.path, LARGE_ROWS))
        assert third.hear()["took"] < size / 2
        assert row_of(third, 12_345) == row_of(second, 12_345)
    assert not exchange._tables


def test_a_shared_table_that_nobody_uses_any_more_leaves_the_gpu(device: torch.device, exchange: Exchange) -> None:
    table = np.zeros((LARGE_ROWS, 64), np.float32)
    free = torch.cuda.mem_get_info(device)[0]
    placed = DeviceTables(device, exchange.path).place("users", "ab", table)
    assert torch.cuda.mem_get_info(device)[0] <= free - table.nbytes
    del placed
    deadline = time.monotonic() + 20
    while torch.cuda.mem_get_info(device)[0] < free - table.nbytes / 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert torch.cuda.mem_get_info(device)[0] >= free - table.nbytes / 4


def models_dir_with_a_network(below: Path, rng: np.random.Generator) -> Path:
    dataset = random_dataset(users=20, items=60, per_user=5, rng=rng)
    publish(below / "models", dataset, rng)
    return below / "models"


def publish(models_dir: Path, dataset: Any, rng: np.random.Generator) -> None:
    embeddings = random_embeddings(20, 60, 8, rng)
    publish_embeddings(models_dir, dataset, embeddings, ranker=TrainedRanker("neumf", network(rng, 20, 60)))


def test_a_server_on_the_gpu_answers_as_one_on_the_cpu_with_workers_and_through_a_swap(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    models_dir = models_dir_with_a_network(tmp_path, rng)

    def answers(address: str) -> tuple[list[str], list[float]]:
        with Client(address, timeout_seconds=20) as client:
            asked = [client.recommend(f"u{user}", rerank=rerank) for user in range(5) for rerank in (False, True)]
        items = [item for one in asked for item in one.items]
        return [item.id for item in items], [item.score for item in items]

    with server_process(models_dir, "--device", "cpu") as (_, address):
        ids, scores = answers(address)
    with server_process(models_dir, "--device", "cuda", "--workers", "2") as (process, address):
        for _ in range(4):  # each connection goes to either
            on_gpu = answers(address)
            assert on_gpu[0] == ids
            np.testing.assert_allclose(on_gpu[1], scores, rtol=1e-4, atol=1e-4)
        publish(models_dir, random_dataset(users=20, items=60, per_user=5, rng=rng), rng)
        with Client(address, timeout_seconds=20) as client:
            deadline = time.monotonic() + 60
            while client.recommend("u1").model_version != 2 and time.monotonic() < deadline:
                time.sleep(0.2)
            assert client.recommend("u1", rerank=True).model_version == 2
        process.terminate()
        process.wait(60)
        assert process.stderr is not None
        log = process.stderr.read()
    assert "its own copy" not in log
    assert "come from the CPU" not in log
    assert "ranked on the CPU" not in log
    assert log.count("once for all workers, by this one") == 10  # five tables of each version
    assert log.count("once for all workers, by another one") == 10


def test_a_version_that_finds_no_room_on_the_gpu_is_refused_and_the_old_one_goes_on(
    tmp_path: Path, rng: np.random.Generator, device: torch.device
) -> None:
    models_dir = models_dir_with_a_network(tmp_path, rng)
    with server_process(models_dir, "--device", "cuda") as (_, address), Client(address, timeout_seconds=20) as client:
        assert client.recommend("u1").model_version == 1
        hoard = []
        block = 1 << 30
        while block >= 1 << 20:  # everything but crumbs
            try:
                hoard.append(torch.empty(block, dtype=torch.uint8, device=device))
            except torch.OutOfMemoryError:
                block //= 2
        large = random_dataset(users=200_000, items=60, per_user=1, rng=rng)
        publish_embeddings(models_dir, large, random_embeddings(200_000, 60, 64, rng), user_clusters=1, item_clusters=1)
        deadline = time.monotonic() + 60
        while (version := client.list_models()[0]).state is not ModelState.FAILED and time.monotonic() < deadline:
            time.sleep(0.2)
        assert version.version == 2
        assert "do not fit into the memory of cuda:0 beside what is loaded" in version.state_reason
        assert client.recommend("u1").model_version == 1
        del hoard
        torch.cuda.empty_cache()


def test_what_the_metrics_say_of_memory_is_the_gpu_s_own(device: torch.device) -> None:
    memory = memory_of(device)
    assert memory["total"] == torch.cuda.get_device_properties(device).total_memory or memory["total"] > 1 << 30
    held = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    assert memory_of(device)["allocated"] >= memory["allocated"] + held.nbytes
    assert 0 < memory_of(device)["used"] <= memory["total"]


def test_a_gpu_that_is_not_there_is_refused_with_how_many_there_are() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(RuntimeError, match=f"there is no device 'cuda:{count}': torch sees {count}"):
        choose_device(f"cuda:{count}")
    assert "CUBLAS_WORKSPACE_CONFIG" in os.environ
