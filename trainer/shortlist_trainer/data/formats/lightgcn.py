"""The files of LightGCN (He et al. 2020) and many after it: train.txt and test.txt, each line "user item item …"."""

from pathlib import Path

import numpy as np
import pandas as pd

from shortlist_trainer.data.dataset import Dataset, build_dataset
from shortlist_trainer.data.formats.options import ReadOptions
from shortlist_trainer.data.rows import MAX_ID_BYTES, Rows, concatenate
from shortlist_trainer.errors import DataError


def matches(path: Path) -> bool:
    """Whether the folder holds train.txt and test.txt."""
    return (path / "train.txt").is_file() and (path / "test.txt").is_file()


def read(name: str, path: Path, options: ReadOptions) -> Dataset:
    """Reads both files; a user without items is passed over, as the published sets have some."""
    train, test = (_read_lines(path / file, options) for file in ("train.txt", "test.txt"))
    return build_dataset(name, "lightgcn", concatenate(train, test), training_rows=len(train.user_codes))


def _read_lines(path: Path, options: ReadOptions) -> Rows:
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as utf-8 text: {error}") from error
    lines = []
    bad_row_count = 0
    for number, line in enumerate(text.splitlines(), start=1):
        ids = line.split()
        if len(line) * 4 > MAX_ID_BYTES and any(len(one.encode()) > MAX_ID_BYTES for one in ids):
            if not options.skip_bad_rows:
                raise DataError(
                    f"{path}, line {number}: an id is longer than {MAX_ID_BYTES} bytes; "
                    "--skip-bad-rows leaves such rows out"
                )
            bad_row_count += 1
        elif len(ids) > 1:
            lines.append(ids)
    if not lines:
        raise DataError(f"{path} holds no usable row")
    lengths = np.fromiter((len(line) - 1 for line in lines), dtype=np.int64, count=len(lines))
    users, user_ids = pd.factorize(np.array([line[0] for line in lines], dtype=object))
    items, item_ids = pd.factorize(np.array([item for line in lines for item in line[1:]], dtype=object))
    return Rows(
        user_codes=np.repeat(users, lengths).astype(np.int32),
        item_codes=items.astype(np.int32),
        ratings=None,
        timestamps=None,
        user_ids=list(user_ids),
        item_ids=list(item_ids),
        bad_row_count=bad_row_count,
    )
