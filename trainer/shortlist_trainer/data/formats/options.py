"""What a caller may say about how data is to be read."""

from dataclasses import dataclass
from pathlib import Path

from shortlist_trainer.data.rows import ColumnNames


@dataclass(frozen=True)
class ReadOptions:
    """How to read interaction data.

    Attributes:
        columns: the columns of a CSV or Parquet file; None to go by the names user, item, rating and timestamp.
        items_path: a CSV or Parquet file of item attributes, its first column being the item id.
        skip_bad_rows: leave malformed rows out and count them, instead of stopping at them.
    """

    columns: ColumnNames | None = None
    items_path: Path | None = None
    skip_bad_rows: bool = False
