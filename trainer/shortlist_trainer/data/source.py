"""From what a user calls the data to the data set."""

import tempfile
from pathlib import Path

from shortlist_trainer.data.dataset import Dataset
from shortlist_trainer.data.fetch import KNOWN, fetch, unpack
from shortlist_trainer.data.formats import FORMATS, ReadOptions, guess_format
from shortlist_trainer.errors import ConfigError, DataError


def load_dataset(data: str, data_format: str | None = None, options: ReadOptions | None = None) -> Dataset:
    """Reads a data set.

    Args:
        data: a path to a folder, file or zip archive, or the name of a known data set, which is fetched if need be.
        data_format: one of ``FORMATS``; None to guess.
        options: how to read it.

    Raises:
        DataError: there is no such data, or it cannot be read.
        ConfigError: there is no such format, or the options do not suit it.
    """
    path = Path(data)
    if not path.exists():
        if data not in KNOWN:
            raise DataError(f"{data!r} is neither a path nor one of the known data sets {', '.join(KNOWN)}")
        path = fetch(data)
    options = options or ReadOptions()
    if path.suffix != ".zip":
        return _read(path.name or data, path, data_format, options)
    with tempfile.TemporaryDirectory() as folder:
        unpack(path, Path(folder))
        files = list(Path(folder).iterdir())
        try:
            return _read(path.stem, files[0] if len(files) == 1 else Path(folder), data_format, options)
        except DataError as error:  # the folder is gone when the message is read
            raise DataError(str(error).replace(folder, str(path))) from error


def _read(name: str, path: Path, data_format: str | None, options: ReadOptions) -> Dataset:
    data_format = data_format or guess_format(path)
    if data_format not in FORMATS:
        raise ConfigError(f"there is no format {data_format!r}; there are {', '.join(FORMATS)}")
    if data_format not in ("csv", "parquet") and (options.columns is not None or options.items_path is not None):
        raise ConfigError(f"--columns and --items are for csv and parquet; {data_format} names its own")
    return FORMATS[data_format].read(name, path, options)
