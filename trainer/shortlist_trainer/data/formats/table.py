"""Any CSV or Parquet file with a column of users and a column of items."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet

from shortlist_trainer.data.dataset import Dataset, build_dataset
from shortlist_trainer.data.formats.options import ReadOptions
from shortlist_trainer.data.rows import ColumnNames, check_rows
from shortlist_trainer.data.text_table import TextLayout, read_text_rows
from shortlist_trainer.errors import DataError


def is_csv(path: Path) -> bool:
    """Whether the name ends in .csv."""
    return path.is_file() and path.suffix == ".csv"


def is_parquet(path: Path) -> bool:
    """Whether the name ends in .parquet."""
    return path.is_file() and path.suffix == ".parquet"


def read_csv(name: str, path: Path, options: ReadOptions) -> Dataset:
    """Reads a comma-separated file whose first line names the columns."""
    if not path.is_file():
        raise DataError(f"{path} is not a CSV file")
    with path.open(encoding="utf-8", errors="replace") as file:
        header = file.readline().rstrip("\r\n").lstrip("\ufeff").split(",")
    columns = options.columns or _usual_names([column.strip('"') for column in header])
    rows = read_text_rows(path, TextLayout(), columns, skip_bad_rows=options.skip_bad_rows)
    return build_dataset(name, "csv", rows, _attributes(options.items_path))


def read_parquet(name: str, path: Path, options: ReadOptions) -> Dataset:
    """Reads a Parquet file; ids may be strings or whole numbers."""
    try:
        names = parquet.read_schema(path).names
        columns = options.columns or _usual_names(names)
        missing = [column for column in columns.present() if column not in names]
        if missing:
            raise DataError(
                f"{path} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(names)} "
                "(name yours with --columns)"
            )
        table = parquet.read_table(path, columns=columns.present())
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    for column in (columns.user, columns.item):
        if pa.types.is_floating(table[column].type):
            raise DataError(f"{path}: column {column!r} holds fractions; ids are strings or whole numbers")
        if not pa.types.is_dictionary(table[column].type):
            position = table.schema.get_field_index(column)
            table = table.set_column(position, column, table[column].cast(pa.string()))
    rows = check_rows(
        path,
        table,
        columns,
        np.arange(1, table.num_rows + 1, dtype=np.int64),
        [],
        skip_bad_rows=options.skip_bad_rows,
        line_word="row",
    )
    return build_dataset(name, "parquet", rows, _attributes(options.items_path))


def _usual_names(present: list[str]) -> ColumnNames:
    """The columns user, item, rating and timestamp, the last two only where they are present."""
    return ColumnNames(
        rating="rating" if "rating" in present else None,
        timestamp="timestamp" if "timestamp" in present else None,
    )


def _attributes(path: Path | None) -> pd.DataFrame | None:
    """Item attributes from a file whose first column is the item id; its other columns keep their names."""
    if path is None:
        return None
    try:
        if is_parquet(path):
            frame = pd.read_parquet(path)
        else:
            id_column = pd.read_csv(path, nrows=0).columns[0]
            frame = pd.read_csv(path, dtype={id_column: str})
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path} cannot be read as item attributes: {error}") from error
    ids = frame.pop(frame.columns[0]).astype(str)
    return frame.set_index(pd.Index(ids, dtype=object)).convert_dtypes()
