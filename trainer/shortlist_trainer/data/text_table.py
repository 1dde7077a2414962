"""Delimited text files as Arrow tables that remember which line each row came from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as arrow_csv

from shortlist_trainer.data.rows import BadRow, ColumnNames, Rows, check_rows
from shortlist_trainer.errors import DataError


@dataclass(frozen=True)
class TextLayout:
    """How a text file is written.

    Attributes:
        delimiter: one character between columns.
        column_names: names of all columns in order, or None where the first line names them.
        encoding: the text's encoding.
        quoted: whether double quotes around a column are taken off, as in CSV.
    """

    delimiter: str = ","
    column_names: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    quoted: bool = True


def read_text_rows(path: Path, layout: TextLayout, columns: ColumnNames, *, skip_bad_rows: bool) -> Rows:
    """Reads and checks the interaction rows of a delimited text file.

    Raises:
        DataError: the file is missing, empty, lacks a column or, unless ``skip_bad_rows``, has a malformed row.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    broken: list[BadRow] = []

    def note_broken_row(row: arrow_csv.InvalidRow) -> str:
        broken.append(BadRow(row.number, f"{row.actual_columns} columns where {row.expected_columns} are expected"))
        return "skip"

    ids_are_repeated_strings = pa.dictionary(pa.int32(), pa.string())
    convert = arrow_csv.ConvertOptions(
        include_columns=columns.present(),
        column_types={name: pa.string() for name in columns.present()}
        | {columns.user: ids_are_repeated_strings, columns.item: ids_are_repeated_strings},
        strings_can_be_null=False,
        quoted_strings_can_be_null=False,
    )
    try:
        table = arrow_csv.read_csv(
            path,
            # One thread: only so does Arrow know the line of a broken row.
            read_options=arrow_csv.ReadOptions(
                use_threads=False, column_names=layout.column_names, encoding=layout.encoding, block_size=8 << 20
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=layout.delimiter,
                quote_char='"' if layout.quoted else False,
                ignore_empty_lines=False,
                invalid_row_handler=note_broken_row,
            ),
            convert_options=convert,
        )
    except KeyError as error:
        raise DataError(_missing_column(path, layout, columns)) from error
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read as {layout.encoding} text: {error}") from error
    first_line = 1 if layout.column_names else 2
    lines = _row_lines(table.num_rows, first_line, [row.line for row in broken])
    blank = _blank(table)
    return check_rows(path, table.filter(pa.array(~blank)), columns, lines[~blank], broken, skip_bad_rows=skip_bad_rows)


def _blank(table: pa.Table) -> npt.NDArray[np.bool_]:
    """(n,) whether every column of the row is empty, as an empty line gives."""
    blank = np.ones(table.num_rows, dtype=np.bool_)
    for column in table.columns:
        if not blank.any():
            break
        blank &= np.asarray((pa.compute.equal(column.cast(pa.string()), "")).to_numpy(zero_copy_only=False))
    return blank


def _row_lines(count: int, first_line: int, broken_lines: list[int]) -> npt.NDArray[np.int64]:
    """(count,) the line of each row, the lines of broken rows being passed over."""
    last = first_line + count + len(broken_lines)
    every_line = np.arange(first_line, last, dtype=np.int64)
    return every_line[~np.isin(every_line, broken_lines)][:count]


def _missing_column(path: Path, layout: TextLayout, columns: ColumnNames) -> str:
    with path.open(encoding=layout.encoding) as file:
        header = file.readline().rstrip("\r\n").split(layout.delimiter)
    missing = ", ".join(repr(name) for name in columns.present() if name not in header)
    return f"{path} has no column {missing}; its columns are {', '.join(header)} (name yours with --columns)"
