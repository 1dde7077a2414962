"""MovieLens-1M and -10M: ratings.dat and movies.dat, columns divided by two colons."""

from collections.abc import Iterator
from pathlib import Path

from shortlist_trainer.data.dataset import Dataset, build_dataset
from shortlist_trainer.data.formats.films import film_attributes
from shortlist_trainer.data.formats.options import ReadOptions
from shortlist_trainer.data.rows import ColumnNames
from shortlist_trainer.data.text_table import TextLayout, read_text_rows
from shortlist_trainer.errors import DataError

# Read as divided by single colons, every second column is empty.
_COLUMNS = ("user", "gap1", "item", "gap2", "rating", "gap3", "timestamp")


def matches(path: Path) -> bool:
    """Whether the folder holds ratings.dat."""
    return (path / "ratings.dat").is_file()


def read(name: str, path: Path, options: ReadOptions) -> Dataset:
    """Reads ratings.dat and, where it is there, movies.dat."""
    rows = read_text_rows(
        path / "ratings.dat",
        TextLayout(delimiter=":", column_names=_COLUMNS, quoted=False),
        ColumnNames("user", "item", "rating", "timestamp"),
        skip_bad_rows=options.skip_bad_rows,
    )
    items = path / "movies.dat"
    return build_dataset(name, "movielens-1m", rows, film_attributes(_films(items)) if items.is_file() else None)


def _films(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    with path.open(encoding="latin-1") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            # Titles hold colons, even double ones; ids and genres do not.
            item_id, _, rest = line.rstrip("\n").partition("::")
            title, divider, genres = rest.rpartition("::")
            if not divider:
                raise DataError(f"{path}, line {number}: not of the form id::title::genres")
            yield item_id, title, genres.split("|")
