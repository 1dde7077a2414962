"""The data formats, one module each. A new format is a module here and a line in ``FORMATS``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shortlist_trainer.data.dataset import Dataset
from shortlist_trainer.data.formats import lightgcn, movielens_1m, movielens_100k, movielens_csv, ncf, netflix, table
from shortlist_trainer.data.formats.options import ReadOptions
from shortlist_trainer.errors import DataError

__all__ = ["FORMATS", "Format", "ReadOptions", "guess_format"]


@dataclass(frozen=True)
class Format:
    """A way in which interaction data is written.

    Attributes:
        matches: whether a file or folder looks like this format.
        read: the data set in a file or folder; raises DataError.
    """

    matches: Callable[[Path], bool]
    read: Callable[[str, Path, ReadOptions], Dataset]


FORMATS = {
    "movielens-100k": Format(movielens_100k.matches, movielens_100k.read),
    "movielens-1m": Format(movielens_1m.matches, movielens_1m.read),
    "movielens-csv": Format(movielens_csv.matches, movielens_csv.read),
    "netflix": Format(netflix.matches, netflix.read),
    "ncf": Format(ncf.matches, ncf.read),
    "lightgcn": Format(lightgcn.matches, lightgcn.read),
    "csv": Format(table.is_csv, table.read_csv),
    "parquet": Format(table.is_parquet, table.read_parquet),
}


def guess_format(path: Path) -> str:
    """The first format that ``path`` looks like.

    Raises:
        DataError: it looks like none.
    """
    for name, candidate in FORMATS.items():
        if candidate.matches(path):
            return name
    raise DataError(f"{path} looks like none of the formats {', '.join(FORMATS)}; name one with --format")
