"""MovieLens latest-small, 20M, 25M and 32M: ratings.csv and movies.csv."""

import csv
from collections.abc import Iterator
from pathlib import Path

from shortlist_trainer.data.dataset import Dataset, build_dataset
from shortlist_trainer.data.formats.films import film_attributes
from shortlist_trainer.data.formats.options import ReadOptions
from shortlist_trainer.data.rows import ColumnNames
from shortlist_trainer.data.text_table import TextLayout, read_text_rows
from shortlist_trainer.errors import DataError

_FILM_COLUMNS = ["movieId", "title", "genres"]


def matches(path: Path) -> bool:
    """Whether the folder holds a ratings.csv with a column userId or movieId."""
    ratings = path / "ratings.csv"
    if not ratings.is_file():
        return False
    with ratings.open(encoding="utf-8", errors="replace") as file:
        return not {"userId", "movieId"}.isdisjoint(file.readline().strip().split(","))


def read(name: str, path: Path, options: ReadOptions) -> Dataset:
    """Reads ratings.csv and, where it is there, movies.csv."""
    rows = read_text_rows(
        path / "ratings.csv",
        TextLayout(),
        ColumnNames("userId", "movieId", "rating", "timestamp"),
        skip_bad_rows=options.skip_bad_rows,
    )
    items = path / "movies.csv"
    return build_dataset(name, "movielens-csv", rows, film_attributes(_films(items)) if items.is_file() else None)


def _films(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            if header != _FILM_COLUMNS:
                raise DataError(f"{path}: the columns are {', '.join(header)}, not {', '.join(_FILM_COLUMNS)}")
            for fields in reader:
                if len(fields) != len(_FILM_COLUMNS):
                    raise DataError(f"{path}, line {reader.line_num}: {len(fields)} columns where 3 are expected")
                yield fields[0], fields[1], fields[2].split("|")
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}, near line {reader.line_num + 1}: {error}") from error
