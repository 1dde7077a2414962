"""Formats that come with a split of their own: netflix, ncf and lightgcn."""

from pathlib import Path

import pandas as pd
import pytest

from shortlist_trainer.data.dataset import Dataset
from shortlist_trainer.data.formats import ReadOptions
from shortlist_trainer.data.source import load_dataset
from shortlist_trainer.errors import DataError


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="latin-1")
    return folder


def pairs(dataset: Dataset, *, test: bool) -> set[tuple[str, str]]:
    assert dataset.given_split is not None
    part = dataset.interactions.select(dataset.given_split.in_test == test)
    return {(dataset.user_ids[user], dataset.item_ids[item]) for user, item in zip(part.users, part.items, strict=True)}


NETFLIX = {
    "netflix_train__csv": "userID,movieID,rating,date\n7,1,5,2005-01-02\n8,2,3,2005-01-03\n7,3,1,2005-01-04\n",
    "netflix_test__csv": "userID,movieID,rating,date\n8,1,4,2005-02-01\n9,1,2,2005-02-02\n7,1,3,2005-02-03\n",
    "movie_titles__csv": "1,2003,Dinosaur Planet\n2,NULL,Sick, Sad World: Amélie\n9,1999,Nobody Saw It\n",
}


def test_netflix_files_share_one_numbering_of_users_and_films(tmp_path: Path) -> None:
    dataset = load_dataset(str(write(tmp_path, **NETFLIX)))
    assert dataset.format == "netflix"
    assert pairs(dataset, test=False) == {("7", "1"), ("8", "2"), ("7", "3")}
    # (7, 1) is in the training file as well, where it stays, however late the test file has it.
    assert pairs(dataset, test=True) == {("8", "1"), ("9", "1")}
    assert dataset.duplicates_merged == 1


def test_netflix_titles_keep_their_commas_and_accents(tmp_path: Path) -> None:
    dataset = load_dataset(str(write(tmp_path, **NETFLIX)))
    titles = dict(zip(dataset.item_ids, dataset.item_attributes["title"], strict=True))
    assert titles["2"] == "Sick, Sad World: Amélie"
    assert pd.isna(titles["3"])
    years = dict(zip(dataset.item_ids, dataset.item_attributes["year"], strict=True))
    assert years["1"] == 2003
    assert pd.isna(years["2"])


def test_one_netflix_file_leaves_the_split_open(tmp_path: Path) -> None:
    dataset = load_dataset(str(write(tmp_path, ratings__csv=NETFLIX["netflix_train__csv"])))
    assert dataset.given_split is None
    assert len(dataset.interactions) == 3


def test_netflix_files_that_cannot_be_told_apart_are_named(tmp_path: Path) -> None:
    write(tmp_path, a__csv=NETFLIX["netflix_train__csv"], b__csv=NETFLIX["netflix_test__csv"])
    with pytest.raises(DataError, match=r"'train' in its name .* there are a\.csv, b\.csv"):
        load_dataset(str(tmp_path))


NCF = {
    "x__train__rating": "0\t31\t4\t100\n0\t27\t4\t101\n1\t31\t5\t102\n",
    "x__test__rating": "0\t25\t5\t200\n1\t27\t3\t201\n",
    "x__test__negative": "(0,25)\t40\t41\n(1,27)\t40\t25\n",
}


def test_ncf_negatives_belong_to_their_users(tmp_path: Path) -> None:
    dataset = load_dataset(str(write(tmp_path, **NCF)))
    assert dataset.format == "ncf"
    assert pairs(dataset, test=True) == {("0", "25"), ("1", "27")}
    assert dataset.given_split is not None
    assert dataset.given_split.negatives is not None
    named = {
        dataset.user_ids[user]: [dataset.item_ids[item] for item in items]
        for user, items in dataset.given_split.negatives.items()
    }
    assert named == {"0": ["40", "41"], "1": ["40", "25"]}
    assert dataset.interactions.item_count == len(dataset.item_ids) == 5  # 40 and 41 have no interaction


def test_a_broken_line_of_ncf_negatives_is_named(tmp_path: Path) -> None:
    write(tmp_path, **{**NCF, "x__test__negative": "(0,25)\t40\n(1,27\t40\n"})
    with pytest.raises(DataError, match=r"x\.test\.negative, line 2"):
        load_dataset(str(tmp_path))


def test_lightgcn_lines_become_pairs(tmp_path: Path) -> None:
    dataset = load_dataset(str(write(tmp_path, train__txt="0 5 6\n1 6\n2\n", test__txt="0 7\n1 5 7 \n\n")))
    assert dataset.format == "lightgcn"
    assert pairs(dataset, test=False) == {("0", "5"), ("0", "6"), ("1", "6")}
    assert pairs(dataset, test=True) == {("0", "7"), ("1", "5"), ("1", "7")}
    assert dataset.interactions.ratings is None


def test_a_lightgcn_id_that_is_too_long_is_named_or_counted(tmp_path: Path) -> None:
    write(tmp_path, train__txt=f"0 5 6\n1 {'9' * 513}\n2 5\n", test__txt="0 7\n")
    with pytest.raises(DataError, match=r"train\.txt, line 2: an id is longer than 512 bytes"):
        load_dataset(str(tmp_path))
    dataset = load_dataset(str(tmp_path), options=ReadOptions(skip_bad_rows=True))
    assert dataset.bad_rows_skipped == 1
    assert "1" not in dataset.user_ids
