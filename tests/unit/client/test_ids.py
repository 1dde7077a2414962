"""Ids to ask for: drawn by a skew, read from a model's folder or from a file."""

import json
import math
import random
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from shortlist_client.loadtest.ids import MOST_SKEW, IdsError, ModelIds, Zipf, newest_version, read_ids


@pytest.mark.parametrize("skew", [0.0, 0.5, 0.99, 1.0, 1.5, 3.0])
def test_ranks_come_up_in_proportion_to_the_power_of_their_place(skew: float) -> None:
    zipf = Zipf(1_000, skew, random.Random(2))
    drawn = Counter(zipf.rank() for _ in range(30_000))
    weights = [rank**-skew for rank in range(1, 1_001)]
    for rank in (1, 2, 5, 20):
        expected = 30_000 * weights[rank - 1] / sum(weights)
        assert abs(drawn[rank] - expected) < 5 * math.sqrt(expected) + 1
    assert min(drawn) >= 1
    assert max(drawn) <= 1_000


@pytest.mark.parametrize("count", [1, 2, 1_000, 1_000_000_000])
def test_the_steepest_curve_asks_for_the_most_popular_alone(count: int) -> None:
    zipf = Zipf(count, MOST_SKEW, random.Random(5))
    assert Counter(zipf.rank() for _ in range(10_000)).most_common(1)[0] >= (1, 9_990)


@pytest.mark.parametrize("count", [1, 2, 7, 1_000])
def test_every_place_of_a_list_belongs_to_one_rank(count: int) -> None:
    zipf = Zipf(count, 0.0, random.Random(3))
    assert {zipf.draw() for _ in range(count * 15)} == set(range(count))


def test_a_hundred_million_users_take_no_table() -> None:
    zipf = Zipf(100_000_000, 0.99, random.Random(4))
    drawn = [zipf.draw() for _ in range(1_000)]
    assert all(0 <= place < 100_000_000 for place in drawn)
    assert len(set(drawn)) > 500


def id_table(path: Path, ids: Sequence[str], **changed: object) -> Path:
    """Writes an id table as the model folder has it, with parts of its header changed."""
    text = "".join(ids).encode()
    offsets = [0]
    for one in ids:
        offsets.append(offsets[-1] + len(one.encode()))
    data = text + struct.pack(f"<{len(offsets)}Q", *offsets)
    header: dict[str, object] = {
        "text": {"dtype": "U8", "shape": [len(text)], "data_offsets": [0, len(text)]},
        "offsets": {"dtype": "U64", "shape": [len(offsets)], "data_offsets": [len(text), len(data)]},
    }
    head = json.dumps(header | changed).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return path


def test_ids_of_a_published_model_are_read_without_any_library(small_models: Path) -> None:
    ids = ModelIds(small_models / "1" / "user_ids.safetensors")
    assert len(ids) == 30
    assert {ids[row] for row in range(30)} == {f"u{number}" for number in range(30)}
    assert newest_version(small_models) == small_models / "1"


def test_ids_may_be_of_any_script_and_length(tmp_path: Path) -> None:
    given = ["a", "ключ", "日本", "x" * 512]
    ids = ModelIds(id_table(tmp_path / "ids", given))
    assert [ids[row] for row in range(len(ids))] == given


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"text": 5}, "flat tensor 'text'"),
        ({"offsets": {"dtype": "U32", "shape": [3], "data_offsets": [2, 14]}}, "flat tensor 'offsets'"),
        ({"offsets": {"dtype": "U64", "shape": [1_000], "data_offsets": [2, 8_002]}}, "shorter than its header"),
        ({"offsets": {"dtype": "U64", "shape": [1], "data_offsets": [2, 10]}}, "holds no id"),
    ],
)
def test_a_broken_id_table_is_named(tmp_path: Path, changed: dict[str, object], why: str) -> None:
    with pytest.raises(IdsError, match=why) as failed:
        ModelIds(id_table(tmp_path / "ids.safetensors", ["a", "b"], **changed))
    assert "ids.safetensors" in str(failed.value)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, struct.pack("<Q", 4) + b"[1] "])
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ids.safetensors").write_bytes(content)
    with pytest.raises(IdsError, match=r"ids\.safetensors"):
        ModelIds(tmp_path / "ids.safetensors")


def test_ids_come_from_a_file_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("7\n\nanna b\n")
    assert read_ids(file) == ("7", "anna b")
    file.write_bytes(b"\xef\xbb\xbf7 \r\n  \r\nanna b\t\r\n")  # as some editors and spreadsheets write it
    assert read_ids(file) == ("7", "anna b")
    file.write_bytes("3\v4\r\n5\u00856\n7\u20288\f9\r10\n".encode())
    assert read_ids(file) == ("3\v4", "5\u00856", "7\u20288\f9\r10")  # a newline alone ends a line
    file.write_text("7\n" + "x" * 513)
    with pytest.raises(IdsError, match="line 2"):
        read_ids(file)
    file.write_text("\n")
    with pytest.raises(IdsError, match="no id"):
        read_ids(file)
