"""The server's tables: ids, seen items, user embeddings, attributes, memory-mapped arrays."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from shortlist_server.errors import BadModel
from shortlist_server.model.tensors import map_tensors
from shortlist_server.retrieval.id_table import UNKNOWN, IdTable
from shortlist_server.retrieval.item_attributes import ItemAttributes
from shortlist_server.retrieval.seen_items import SeenItems
from shortlist_server.retrieval.user_embeddings import UserEmbeddings
from shortlist_trainer.export.id_table import id_table

IDS = ["1", "01", "ann", "été", "x" * 512, "a\x00b", "電影"]


def table_of(ids: list[str]) -> IdTable:
    return IdTable(**id_table(ids))  # type: ignore[arg-type]  # arrays of the right types by name


def test_what_the_trainer_writes_the_server_finds() -> None:
    table = table_of(IDS)
    assert len(table) == len(IDS)
    assert table.rows(IDS).tolist() == list(range(len(IDS)))
    assert table.ids(range(len(IDS))) == IDS


@pytest.mark.parametrize("unknown", ["", "2", "1 ", "Ann", "\ud800", "x" * 511])
def test_an_unknown_id_has_no_row(unknown: str) -> None:
    assert table_of(IDS).row(unknown) == UNKNOWN


def test_ids_that_share_a_hash_are_told_apart() -> None:
    arrays = id_table(["a", "b", "c"])
    shared = int.from_bytes(hashlib.blake2b(b"c", digest_size=8).digest(), "little")
    arrays["hashes"] = np.full(3, shared, dtype=np.uint64)
    table = IdTable(**arrays)  # type: ignore[arg-type]  # arrays of the right types by name
    assert table.row("c") == 2
    assert table.row("a") == UNKNOWN  # its own hash is not there


def test_an_empty_lookup_gives_no_rows() -> None:
    assert table_of(IDS).rows([]).tolist() == []


def test_padded_ids_are_those_of_the_rows_with_something_behind() -> None:
    table = table_of(IDS)
    rows = np.array([len(IDS) - 1, 0, 1, 0])
    padded = table.padded(rows, 1_000)
    assert padded is not None
    cut = [row[:length].tobytes().decode() for row, length in zip(*padded, strict=True)]
    assert cut == [IDS[row] for row in rows.tolist()]


def test_ids_longer_than_the_width_are_not_padded() -> None:
    longest = max(len(one.encode()) for one in IDS)
    rows = np.arange(len(IDS))
    assert table_of(IDS).padded(rows, longest - 1) is None
    assert table_of(IDS).padded(rows, longest) is not None


def test_seen_items_are_those_of_the_user() -> None:
    seen = SeenItems(np.array([0, 2, 2, 3]), np.array([4, 9, 1], dtype=np.int32))
    assert [seen.of(user).tolist() for user in range(3)] == [[4, 9], [], [1]]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_embeddings_are_gathered_in_order_as_float32(dtype: type[np.floating]) -> None:
    users = UserEmbeddings(np.arange(12).reshape(4, 3).astype(dtype), np.array([0.5, 0, 0, 2], np.float32))
    gathered = users.gather(np.array([3, 0, 3]))
    assert gathered.dtype == np.float32
    assert gathered.tolist() == [[9, 10, 11], [0, 1, 2], [9, 10, 11]]
    assert users.biases(np.array([0, 3])).tolist() == [0.5, 2.0]


def test_attributes_come_in_the_order_of_the_rows_with_none_where_they_are_missing() -> None:
    attributes = ItemAttributes(pa.table({"year": pa.array([1, None, 3]), "tags": [["a"], [], ["b", "c"]]}))
    assert attributes.values("year", np.array([2, 1, 0])) == [3, None, 1]
    assert attributes.values("tags", np.array([2, 1])) == [["b", "c"], []]
    assert attributes.names == ["year", "tags"]


def test_arrays_are_mapped_as_they_were_saved(tmp_path: Path) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([2**63], dtype=np.uint64),
        "c": np.array([], dtype=np.int32),
        "d": np.frombuffer(b"text", dtype=np.uint8),
    }
    save_file(arrays, tmp_path / "x.safetensors")
    mapped = map_tensors(tmp_path / "x.safetensors")
    for name, array in arrays.items():
        assert mapped[name].dtype == array.dtype
        np.testing.assert_array_equal(mapped[name], array)


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"\xff" * 64, (10).to_bytes(8, "little") + b"not json!!", (2).to_bytes(8, "little") + b"[]"],
)
def test_a_file_that_is_no_safetensors_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(BadModel, match=r"x\.safetensors"):
        map_tensors(tmp_path / "x.safetensors")
