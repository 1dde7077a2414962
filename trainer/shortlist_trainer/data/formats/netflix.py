"""Netflix Prize ratings as CSV: userID, movieID, rating and perhaps date, in separate train and test files.

The folder holds a .csv file with "train" in its name and one with "test"; or one .csv of ratings alone. Titles come
from movie_titles.csv, which is ISO-8859-1 and whose titles may contain commas: id,year,title.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from shortlist_trainer.data.dataset import Dataset, build_dataset
from shortlist_trainer.data.formats.options import ReadOptions
from shortlist_trainer.data.rows import ColumnNames, Rows, concatenate
from shortlist_trainer.data.text_table import TextLayout, read_text_rows
from shortlist_trainer.errors import DataError

_TITLES = "movie_titles.csv"
_REQUIRED = ("userID", "movieID", "rating")


def _header(path: Path) -> list[str]:
    with path.open(encoding="latin-1") as file:
        return [column.strip().strip('"') for column in file.readline().lstrip("\ufeff").split(",")]


def _rating_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return [file for file in sorted(path.glob("*.csv")) if set(_REQUIRED) <= set(_header(file))]


def matches(path: Path) -> bool:
    """Whether the folder holds a .csv file with the columns userID, movieID and rating."""
    return bool(_rating_files(path))


def read(name: str, path: Path, options: ReadOptions) -> Dataset:
    """Reads the ratings and, where it is there, movie_titles.csv."""
    files = _rating_files(path)
    train = [file for file in files if "train" in file.name.lower()]
    test = [file for file in files if "test" in file.name.lower()]
    if len(files) == 1:
        train, test = files, []
    if len(train) != 1 or len(test) > 1:
        raise DataError(
            f"{path}: of the .csv files with the columns {', '.join(_REQUIRED)} one must have 'train' in its name and "
            f"at most one 'test'; there are {', '.join(file.name for file in files) or 'none'}"
        )
    titles = path / _TITLES
    attributes = _attributes(titles) if titles.is_file() else None
    rows = _read_rows(train[0], options)
    if not test:
        return build_dataset(name, "netflix", rows, attributes)
    both = concatenate(rows, _read_rows(test[0], options))
    return build_dataset(name, "netflix", both, attributes, training_rows=len(rows.user_codes))


def _read_rows(path: Path, options: ReadOptions) -> Rows:
    date = "date" if "date" in _header(path) else None
    return read_text_rows(path, TextLayout(), ColumnNames(*_REQUIRED, date), skip_bad_rows=options.skip_bad_rows)


def _attributes(path: Path) -> pd.DataFrame:
    ids, years, titles = zip(*_films(path), strict=True)
    return pd.DataFrame(
        {"title": titles, "year": pd.array(years, dtype="Int64")},
        index=pd.Index(ids, dtype=object),
    )


def _films(path: Path) -> Iterator[tuple[str, int | None, str]]:
    with path.open(encoding="latin-1") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            fields = line.rstrip("\r\n").split(",", 2)
            if len(fields) != 3:
                raise DataError(f"{path}, line {number}: not of the form id,year,title")
            if number == 1 and not fields[0].strip().isdecimal():
                continue  # some copies name their columns
            item_id, year, title = (field.strip() for field in fields)
            yield item_id, int(year) if year.isdecimal() else None, title.strip('"')
