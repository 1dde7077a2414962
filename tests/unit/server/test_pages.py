"""Pages of a version's files are brought into the process before a request needs them."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from shortlist_server.model.pages import touch

SIZE = 8 << 20
FILES = ("user_embeddings.safetensors", "items.faiss", "clusters.safetensors")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux alone")


def mapped(folder: Path) -> dict[str, "np.memmap[tuple[int], np.dtype[np.uint8]]"]:
    """Files that are mapped as a server maps them, and not looked at."""
    for name in FILES:
        (folder / name).write_bytes(bytes(SIZE))
    return {name: np.memmap(folder / name, dtype=np.uint8, mode="c") for name in FILES}


def kilobytes(path: Path, what: str) -> int:
    """A figure of /proc/self/smaps about a mapped file."""
    smaps = Path("/proc/self/smaps").read_text()
    found = re.search(rf"{what}:\s+(\d+) kB", smaps[smaps.index(str(path)) :])
    assert found
    return int(found[1])


def test_every_page_that_is_mapped_is_in_memory_afterwards_and_none_is_copied(tmp_path: Path) -> None:
    arrays = mapped(tmp_path)
    assert {kilobytes(tmp_path / name, "Rss") for name in FILES} == {0}
    assert touch(tmp_path, lambda: None) == len(FILES) * SIZE
    for name in arrays:
        assert kilobytes(tmp_path / name, "Rss") == SIZE // 1024
        assert kilobytes(tmp_path / name, "Anonymous") == 0


def test_rows_of_users_stay_where_they_are_when_a_version_takes_more_than_half_of_the_memory(tmp_path: Path) -> None:
    arrays = mapped(tmp_path)
    assert touch(tmp_path, lambda: None, memory_bytes=5 * SIZE) == 2 * SIZE
    resident = {name: kilobytes(tmp_path / name, "Rss") * 1024 for name in arrays}
    assert resident == {name: 0 if name.startswith("user") else SIZE for name in FILES}


def test_a_file_that_was_cut_short_meanwhile_does_not_end_the_process(tmp_path: Path) -> None:
    arrays = mapped(tmp_path)
    (tmp_path / "items.faiss").write_bytes(b"")
    assert touch(tmp_path, lambda: None) == (len(arrays) - 1) * SIZE


def test_touching_ends_when_the_server_stops(tmp_path: Path) -> None:
    arrays = mapped(tmp_path)

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        touch(tmp_path, stop)
    assert {kilobytes(tmp_path / name, "Rss") for name in arrays} == {0}
