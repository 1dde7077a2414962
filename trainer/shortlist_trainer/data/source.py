"""From what a user calls the data to the data set."""

import tempfile
from pathlib import Path

from shortlist_trainer.data.dataset import Dataset
from shortlist_trainer.data.fetch import KNOWN, fetch, unpack
from shortlist_trainer.data.formats import FORMATS, ReadOptions, guess_format
from shortlist_trainer.errors import DataError


def load_dataset(data: str, data_format: str | None = None, options: ReadOptions | None = None) -> Dataset:
    """Reads a data set.

    Args:
        data: a path to a folder, file or zip archive, or the name of a known data set, which is fetched if need be.
        data_format: one of ``FORMATS``; None to guess.
        options: how to read it.

    Raises:
        DataError: there is no such data, or it cannot be read.
    """
    path = Path(data)
    if not path.exists():
        if data not in KNOWN:
            raise DataError(f"{data!r} is neither a path nor one of the known data sets {', '.join(KNOWN)}")
        path = fetch(data)
    if path.suffix != ".zip":
        return _read(path.name or data, path, data_format, options)
    with tempfile.TemporaryDirectory() as folder:
        unpack(path, Path(folder))
        return _read(path.stem, Path(folder), data_format, options)


def _read(name: str, path: Path, data_format: str | None, options: ReadOptions | None) -> Dataset:
    return FORMATS[data_format or guess_format(path)].read(name, path, options or ReadOptions())
