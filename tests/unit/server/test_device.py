"""Tables on a device: gathered by rows, ranked with, shared or not, and answered for when the device fails.

A GPU's part is in tests/gpu. Torch's device "meta", which computes and has no memory, stands for one that fails.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from shortlist_server.device.choice import choose_device, memory_of
from shortlist_server.device.exchange import Exchange
from shortlist_server.device.gather import DeviceGather
from shortlist_server.device.tables import DeviceTables
from shortlist_server.retrieval.ranker import Ranker
from shortlist_server.retrieval.user_embeddings import UserEmbeddings
from tests.devices import WITHOUT_A_GPU, network


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("count", [0, 1, 3, 257, 10_000])
def test_rows_gathered_on_a_device_are_the_table_s_in_order_as_float32(
    rng: np.random.Generator, dtype: type[np.floating], count: int
) -> None:
    table = rng.standard_normal((500, 8)).astype(dtype)
    gather = DeviceGather(torch.from_numpy(table))
    rows = rng.integers(0, 500, count)
    gather(np.arange(5))  # leaves its buffers to the next
    gathered = gather(rows)
    assert gathered.dtype == np.float32
    np.testing.assert_array_equal(gathered, table[rows].astype(np.float32))
    gather(np.zeros(300, dtype=np.int64))
    np.testing.assert_array_equal(gathered, table[rows].astype(np.float32))  # the buffers are not what was given out


def test_threads_that_gather_at_once_get_their_own_rows(rng: np.random.Generator) -> None:
    table = rng.standard_normal((500, 8), dtype=np.float32)
    gather = DeviceGather(torch.from_numpy(table))
    wrong: list[int] = []

    def ask(seed: int) -> None:
        mine = np.random.default_rng(seed)
        for _ in range(200):
            rows = mine.integers(0, 500, 64)
            if not np.array_equal(gather(rows), table[rows]):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_user_embeddings_come_from_memory_once_the_device_fails(
    rng: np.random.Generator, caplog: pytest.LogCaptureFixture, dtype: type[np.floating]
) -> None:
    table = rng.standard_normal((10, 4)).astype(dtype)
    users = UserEmbeddings(table, on_device=torch.from_numpy(table).to("meta"))
    assert users.device.type == "meta"
    for _ in range(2):
        np.testing.assert_array_equal(users.gather(np.array([3, 9])), table[[3, 9]].astype(np.float32))
    assert users.device.type == "cpu"
    assert caplog.text.count("meta fails, and user embeddings come from the CPU") == 1


def test_candidates_are_ranked_on_the_cpu_once_the_device_fails(
    rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = network(rng)
    ranker = Ranker(tensors, lambda name, table: torch.from_numpy(table).to("meta"))
    assert ranker.device.type == "meta"
    users, items = rng.integers(0, 20, 5), rng.integers(0, 30, (5, 7))
    expected = Ranker(tensors).score(users, items)
    for _ in range(2):
        np.testing.assert_array_equal(ranker.score(users, items), expected)
    assert caplog.text.count("meta fails, and 5 users are ranked on the CPU") == 1


def test_only_the_tables_of_a_network_are_placed(rng: np.random.Generator) -> None:
    placed = []

    def place(name: str, table: np.ndarray) -> torch.Tensor:
        placed.append(name)
        return torch.from_numpy(table)

    Ranker(network(rng), place)
    assert sorted(placed) == [f"{part}.{side}_embeddings" for part in ("gmf", "mlp") for side in ("item", "user")]


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    exchange = Exchange()
    yield exchange
    exchange.close()


def test_tables_of_one_exchange_are_the_same_memory_and_others_are_not(
    rng: np.random.Generator, exchange: Exchange
) -> None:
    table = rng.standard_normal((50, 4), dtype=np.float32)
    one, other = DeviceTables("cpu", exchange.path), DeviceTables("cpu", exchange.path)
    first, second = one.place("users", "ab", table), other.place("users", "ab", table)
    np.testing.assert_array_equal(second.numpy(), table)
    third = other.place("users", "cd", table + 1)  # another version
    first[7] = 5  # as nobody does
    assert second[7].tolist() == [5] * 4
    assert third[7].tolist() == (table[7] + 1).tolist()
    del first
    assert second[8].tolist() == table[8].tolist()


def test_a_table_that_is_not_used_any_more_is_let_go(rng: np.random.Generator, exchange: Exchange) -> None:
    table = rng.standard_normal((50, 4), dtype=np.float32)
    users = UserEmbeddings(table, on_device=DeviceTables("cpu", exchange.path).place("users", "ab", table))
    users.gather(np.array([1]))
    assert len(exchange._tables) == 1
    del users
    gone = threading.Event()
    for _ in range(1000):
        if not exchange._tables or gone.wait(0.01):
            break
    assert not exchange._tables


def test_where_tables_cannot_be_shared_each_worker_has_its_own_and_says_so(
    rng: np.random.Generator, exchange: Exchange, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = rng.standard_normal((50, 4), dtype=np.float32)
    alone = DeviceTables("cpu", tmp_path / "nobody").place("users", "ab", table)
    np.testing.assert_array_equal(alone.numpy(), table)
    assert alone.data_ptr() != table.ctypes.data
    assert "users cannot be shared with the other workers, so this one has its own copy on cpu" in caplog.text
    assert "FileNotFoundError" in caplog.text
    shared = DeviceTables("cpu", exchange.path).place("users", "ab", table)
    caplog.clear()
    changed = table.copy()
    changed[-1, -1] += 1
    own = DeviceTables("cpu", exchange.path).place("users", "ab", changed)  # what should not be: one name, two contents
    np.testing.assert_array_equal(own.numpy(), changed)
    np.testing.assert_array_equal(shared.numpy(), table)
    assert "what another worker shared is not this table" in caplog.text
    caplog.clear()
    longer = rng.standard_normal((5_000, 4), dtype=np.float32)
    own = DeviceTables("cpu", exchange.path).place("users", "ab", longer)
    np.testing.assert_array_equal(own.numpy(), longer)
    assert "ValueError: mmap length is greater than file size" in caplog.text


def test_a_table_without_rows_is_placed(exchange: Exchange) -> None:
    table = np.empty((0, 4), dtype=np.float16)
    placed = DeviceTables("cpu", exchange.path).place("users", "ab", table)
    assert (placed.shape, placed.dtype) == ((0, 4), torch.float16)


def test_on_the_cpu_without_an_exchange_tables_stay_where_they_are(rng: np.random.Generator) -> None:
    table = rng.standard_normal((50, 4), dtype=np.float32)
    tables = DeviceTables("cpu")
    assert tables.in_place
    assert tables.place("users", "ab", table).data_ptr() == table.ctypes.data


@pytest.mark.parametrize("name", ["gpu", "meta", "", "cuda:x", "xpu"])
def test_a_device_that_is_none_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"the device must be auto, cpu, cuda or cuda:N, not '{name}'"):
        choose_device(name)


@WITHOUT_A_GPU
def test_without_a_gpu_auto_is_the_cpu_and_a_gpu_is_refused_with_the_reason() -> None:
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    for name in ("cuda", "cuda:1"):
        with pytest.raises(RuntimeError, match=f"the device '{name}' cannot be used: "):
            choose_device(name)
    assert memory_of(torch.device("cpu")) == memory_of(torch.device("cuda")) == {}
