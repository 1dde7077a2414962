"""Delimited text files as Arrow tables that remember which line each row came from."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
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
    first_row = 1 if layout.column_names else 2
    numbers = _row_numbers(table.num_rows, first_row, [row.number for row in broken])
    usable = ~_empty_lines(path, table, numbers)
    return check_rows(
        path,
        table.filter(pa.array(usable)),
        columns,
        numbers[usable],
        broken,
        skip_bad_rows=skip_bad_rows,
        place=lambda number: f"line {_line(path, layout, number)}",
    )


def _empty_lines(path: Path, table: pa.Table, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """(n,) whether a row is an empty line, which Arrow gives as a row of empty columns."""
    empty = np.ones(table.num_rows, dtype=np.bool_)
    for column in table.columns:
        if not empty.any():
            return empty
        empty &= np.asarray(pc.equal(column.cast(pa.string()), "").to_numpy(zero_copy_only=False))
    # A line of delimiters alone looks the same and is a malformed row.
    with path.open("rb") as file:
        lines = [number for number, line in enumerate(file, start=1) if not line.strip(b"\r\n")]
    return empty & np.isin(numbers, lines)


def _row_numbers(count: int, first_row: int, broken: list[int]) -> npt.NDArray[np.int64]:
    """(count,) the number of each row in the file, counted from 1 with the header, broken rows being passed over."""
    every_row = np.arange(first_row, first_row + count + len(broken), dtype=np.int64)
    return every_row[~np.isin(every_row, broken)][:count]


def _line(path: Path, layout: TextLayout, row_number: int) -> int:
    """The line on which a row begins, which is its number unless quoted line breaks come before it."""
    if not layout.quoted:
        return row_number
    begins = 1
    try:
        with path.open(encoding=layout.encoding, errors="replace", newline="") as file:
            reader = csv.reader(file, delimiter=layout.delimiter)
            for number, _ in enumerate(reader, start=1):
                if number == row_number:
                    return begins
                begins = reader.line_num + 1
    except csv.Error:
        pass  # what Python's reader does not take, Arrow's has taken: its count is the best there is
    return row_number


def _missing_column(path: Path, layout: TextLayout, columns: ColumnNames) -> str:
    with path.open(encoding=layout.encoding, errors="replace") as file:
        header = file.readline().rstrip("\r\n").split(layout.delimiter)
    missing = ", ".join(repr(name) for name in columns.present() if name not in header)
    return f"{path} has no column {missing}; its columns are {', '.join(header)} (name yours with --columns)"
