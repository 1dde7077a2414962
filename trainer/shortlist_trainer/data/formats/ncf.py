"""The files of "Neural Collaborative Filtering" (He et al. 2017): leave-one-out with 99 negatives for each user.

NAME.train.rating and NAME.test.rating hold user, item, rating and timestamp, divided by tabs; NAME.test.negative holds
"(user,item)" and the negatives, divided by tabs.
"""

import re
from pathlib import Path

from shortlist_trainer.data.dataset import Dataset, build_dataset
from shortlist_trainer.data.formats.options import ReadOptions
from shortlist_trainer.data.rows import ColumnNames, concatenate
from shortlist_trainer.data.text_table import TextLayout, read_text_rows
from shortlist_trainer.errors import DataError

_COLUMNS = ("user", "item", "rating", "timestamp")
_LAYOUT = TextLayout(delimiter="\t", column_names=_COLUMNS, quoted=False)
_PAIR = re.compile(r"\(([^,]+),([^)]+)\)")


def matches(path: Path) -> bool:
    """Whether the folder holds one NAME.train.rating."""
    return path.is_dir() and len(list(path.glob("*.train.rating"))) == 1


def read(name: str, path: Path, options: ReadOptions) -> Dataset:
    """Reads the three files; those for testing become the data set's own split."""
    found = sorted(path.glob("*.train.rating")) if path.is_dir() else []
    if len(found) != 1:
        raise DataError(f"{path} holds {len(found)} files named *.train.rating where one is expected")
    stem = found[0].name.removesuffix(".train.rating")
    columns = ColumnNames(*_COLUMNS)
    train = read_text_rows(found[0], _LAYOUT, columns, skip_bad_rows=options.skip_bad_rows)
    test = read_text_rows(path / f"{stem}.test.rating", _LAYOUT, columns, skip_bad_rows=options.skip_bad_rows)
    negatives = path / f"{stem}.test.negative"
    return build_dataset(
        name,
        "ncf",
        concatenate(train, test),
        training_rows=len(train.user_codes),
        negatives=_negatives(negatives) if negatives.is_file() else None,
    )


def _negatives(path: Path) -> dict[str, list[str]]:
    found = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            first, *items = line.rstrip("\n").split("\t")
            pair = _PAIR.fullmatch(first)
            if pair is None or not items or "" in items:
                raise DataError(f"{path}, line {number}: not of the form (user,item), then items, divided by tabs")
            found[pair.group(1)] = items
    return found
