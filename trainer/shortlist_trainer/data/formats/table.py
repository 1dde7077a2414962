"""Any CSV or Parquet file with a column of users and a column of items."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet

from shortlist_trainer.data.dataset import Dataset, build_dataset
from shortlist_trainer.data.formats.options import ReadOptions
from shortlist_trainer.data.rows import ColumnNames, Rows, check_rows
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
    return build_dataset(name, "csv", rows, _attributes(options.items_path, rows))


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
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    for column in (columns.user, columns.item):
        if pa.types.is_floating(table[column].type):
            raise DataError(f"{path}: column {column!r} holds fractions; ids are strings or whole numbers")
        if not pa.types.is_dictionary(table[column].type):
            position = table.schema.get_field_index(column)
            try:
                table = table.set_column(position, column, table[column].cast(pa.string()))
            except pa.ArrowException as error:
                raise DataError(f"{path}: column {column!r} cannot be read as ids: {error}") from error
    rows = check_rows(
        path,
        table,
        columns,
        np.arange(1, table.num_rows + 1, dtype=np.int64),
        [],
        skip_bad_rows=options.skip_bad_rows,
        place=lambda number: f"row {number}",
    )
    return build_dataset(name, "parquet", rows, _attributes(options.items_path, rows))


def _usual_names(present: list[str]) -> ColumnNames:
    """The columns user, item, rating and timestamp, the last two only where they are present."""
    return ColumnNames(
        rating="rating" if "rating" in present else None,
        timestamp="timestamp" if "timestamp" in present else None,
    )


def _attributes(path: Path | None, rows: Rows) -> pd.DataFrame | None:
    """Item attributes from a file whose first column is the item id; its other columns keep their names."""
    if path is None:
        return None
    try:
        if is_parquet(path):
            frame = pd.read_parquet(path)
        else:
            id_column = pd.read_csv(path, nrows=0).columns[0]
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # a row longer than the header
                # Only what is empty is missing: "NA" and "null" are ids and titles like any other.
                frame = pd.read_csv(
                    path, dtype={id_column: str}, keep_default_na=False, na_values=[""], index_col=False
                )
    except (OSError, ValueError, IndexError, pd.errors.ParserWarning, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as item attributes: {error}") from error
    ids = frame.pop(frame.columns[0])
    if pd.api.types.is_float_dtype(ids):
        raise DataError(f"{path}: column {ids.name!r} holds fractions; ids are strings or whole numbers")
    ids = ids.astype(str)
    if not set(rows.item_ids) & set(ids):
        raise DataError(f"{path}: no id of its first column, {ids.name!r}, is an item of the interactions")
    return frame.set_index(pd.Index(ids, dtype=object)).convert_dtypes()
