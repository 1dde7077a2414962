"""MovieLens-100K as GroupLens packs it: u.data and u.item."""

from collections.abc import Iterator
from pathlib import Path

from shortlist_trainer.data.dataset import Dataset, build_dataset
from shortlist_trainer.data.formats.films import film_attributes
from shortlist_trainer.data.formats.options import ReadOptions
from shortlist_trainer.data.rows import ColumnNames
from shortlist_trainer.data.text_table import TextLayout, read_text_rows
from shortlist_trainer.errors import DataError

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""The genre flags of u.item, in their order."""

COLUMNS_BEFORE_GENRES = 5
"""Id, title, release date, video release date and link."""

_COLUMNS = ("user", "item", "rating", "timestamp")


def matches(path: Path) -> bool:
    """Whether the folder holds u.data."""
    return (path / "u.data").is_file()


def read(name: str, path: Path, options: ReadOptions) -> Dataset:
    """Reads u.data and, where it is there, u.item."""
    rows = read_text_rows(
        path / "u.data",
        TextLayout(delimiter="\t", column_names=_COLUMNS, quoted=False),
        ColumnNames(*_COLUMNS),
        skip_bad_rows=options.skip_bad_rows,
    )
    items = path / "u.item"
    return build_dataset(name, "movielens-100k", rows, film_attributes(_films(items)) if items.is_file() else None)


def _films(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    with path.open(encoding="latin-1") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            fields = line.rstrip("\n").split("|")
            if len(fields) != COLUMNS_BEFORE_GENRES + len(GENRES):
                expected = COLUMNS_BEFORE_GENRES + len(GENRES)
                raise DataError(f"{path}, line {number}: {len(fields)} columns where {expected} are expected")
            flags = fields[COLUMNS_BEFORE_GENRES:]
            yield fields[0], fields[1], [genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1"]
