"""Known data sets, downloaded once into a local cache with their checksums verified."""

import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

from shortlist_trainer.data.formats.movielens_100k import COLUMNS_BEFORE_GENRES, GENRES
from shortlist_trainer.errors import DataError

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
"""Where GroupLens keeps its archives, each beside a file with its MD5 checksum."""

KNOWN = ("ml-100k", "ml-1m", "ml-20m", "ml-latest-small")
"""The names that ``fetch`` knows."""

CONNECT_TIMEOUT_SECONDS = 10.0

_WHEEL = "recbole"
_WHEEL_VERSION = "1.2.1"
_WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_WHEEL_FOLDER = "recbole/dataset_example/ml-100k"
_INSTEAD_OF_YEAR = "unkonwn"  # as the wheel spells it


def default_cache() -> Path:
    """$SHORTLIST_CACHE, or ~/.cache/shortlist."""
    return Path(os.environ.get("SHORTLIST_CACHE") or Path.home() / ".cache" / "shortlist")


def fetch(name: str, cache: Path | None = None, grouplens: str = GROUPLENS) -> Path:
    """Brings a known data set into the cache unless it is there already.

    GroupLens's own archive is tried first. Where it cannot be reached, MovieLens-100K is taken from a Python
    package that carries it.

    Args:
        name: one of ``KNOWN``.
        cache: the cache folder; None for ``default_cache()``.
        grouplens: where GroupLens's archives are.

    Returns:
        The folder that holds the data.

    Raises:
        DataError: the name is unknown, nothing could be reached, or a checksum does not match.
    """
    if name not in KNOWN:
        raise DataError(f"no data set is called {name!r}; known are {', '.join(KNOWN)}")
    cache = cache or default_cache()
    folder = cache / name
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with _aside(folder) as fresh:
        try:
            _from_grouplens(name, fresh, grouplens)
        except (OSError, HTTPException, ValueError, DataError) as error:  # urllib's errors are OSErrors
            if name != "ml-100k":
                if isinstance(error, DataError):
                    raise
                raise DataError(
                    f"{grouplens}/{name}.zip cannot be reached ({error}); bring the archive here by other means and "
                    f"give its path as --data"
                ) from error
            for partial in fresh.iterdir():
                partial.unlink()
            _say(f"GroupLens cannot be used ({error}); taking {name} from the package {_WHEEL} {_WHEEL_VERSION}")
            _from_wheel(fresh, error)
    return folder


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder that takes its final name only when it is complete."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield fresh
        fresh.chmod(0o755)
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was quicker: its copy is as good
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _from_grouplens(name: str, folder: Path, grouplens: str) -> None:
    archive = folder / "archive.zip"
    digest = hashlib.md5(usedforsecurity=False)  # what GroupLens publishes: it guards against a broken download
    with (
        _open(f"{grouplens}/{name}.zip") as response,
        archive.open("wb") as file,
        tqdm(total=int(response.headers.get("Content-Length", 0)) or None, unit="B", unit_scale=True, desc=name) as bar,
    ):
        while chunk := response.read(1 << 16):
            file.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
    with _open(f"{grouplens}/{name}.zip.md5") as response:
        published = re.search(r"\b[0-9a-f]{32}\b", response.read(4096).decode("ascii", "replace"))
    if published is None or published.group() != digest.hexdigest():
        expected = published.group() if published else "nothing readable"
        raise DataError(f"{grouplens}/{name}.zip has MD5 {digest.hexdigest()}, but GroupLens states {expected}; retry")
    unpack(archive, folder)
    archive.unlink()


def _open(url: str) -> HTTPResponse:
    response = urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_SECONDS)  # noqa: S310 - ours or the caller's own
    assert isinstance(response, HTTPResponse)
    return response


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks the files of a zip into ``folder``, without the archive's own folders.

    Raises:
        DataError: it is no zip file.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            for entry in content.infolist():
                if entry.is_dir():
                    continue
                target = folder / Path(entry.filename).name
                if target.exists():
                    raise DataError(f"{archive} holds several files named {target.name}")
                with content.open(entry) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{archive} is not a zip archive: {error}") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or compressed in a way Python does not know
        raise DataError(f"{archive} cannot be unpacked: {error}") from error


def _from_wheel(folder: Path, grouplens_error: Exception) -> None:
    with tempfile.TemporaryDirectory() as downloads:
        command = [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
            *("--disable-pip-version-check", "--quiet", "--dest", downloads, f"{_WHEEL}=={_WHEEL_VERSION}"),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(downloads).glob("*.whl"))
        if result.returncode or not wheels:
            reason = (result.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise DataError(
                f"MovieLens-100K cannot be fetched. GroupLens: {grouplens_error}. pip: {reason}. Bring ml-100k.zip "
                "here by other means and give its path as --data"
            )
        found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
        if found != _WHEEL_SHA256:
            raise DataError(f"{wheels[0].name} has SHA-256 {found}, not {_WHEEL_SHA256}; it was not used")
        with zipfile.ZipFile(wheels[0]) as wheel:
            ratings = wheel.read(f"{_WHEEL_FOLDER}/ml-100k.inter").decode()
            items = wheel.read(f"{_WHEEL_FOLDER}/ml-100k.item").decode()
    (folder / "u.data").write_text(ratings.partition("\n")[2])
    with (folder / "u.item").open("w", encoding="latin-1") as file:
        for item_id, title, year, genres in list(csv.reader(items.splitlines(), "excel-tab", quoting=csv.QUOTE_NONE))[
            1:
        ]:
            flags = ["1" if genre in genres.split(" ") else "0" for genre in GENRES]
            named = title if year in ("", _INSTEAD_OF_YEAR) else f"{title} ({year})"
            file.write("|".join([item_id, named, *[""] * (COLUMNS_BEFORE_GENRES - 2), *flags]) + "\n")


def _say(text: str) -> None:
    sys.stderr.write(f"shortlist: {text}\n")
