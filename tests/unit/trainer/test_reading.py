"""Reading data: what comes out of good files, and what is said of bad ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shortlist_trainer.data.dataset import Dataset
from shortlist_trainer.data.formats import ReadOptions
from shortlist_trainer.data.rows import ColumnNames
from shortlist_trainer.data.source import load_dataset
from shortlist_trainer.errors import ConfigError, DataError

GOOD = "user,item,rating,timestamp\nann,x,4,100\nbob,y,3.5,200\nann,y,1,300\n"


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


def read(path: Path, *, skip: bool = False, columns: ColumnNames | None = None) -> Dataset:
    return load_dataset(str(path), options=ReadOptions(columns=columns, skip_bad_rows=skip))


def triples(dataset: Dataset) -> list[tuple[str, str, float]]:
    interactions = dataset.interactions
    assert interactions.ratings is not None
    return [
        (dataset.user_ids[user], dataset.item_ids[item], float(rating))
        for user, item, rating in zip(interactions.users, interactions.items, interactions.ratings, strict=True)
    ]


def test_a_csv_gives_its_ids_ratings_and_times(tmp_path: Path) -> None:
    dataset = read(write(tmp_path / "d.csv", GOOD))
    assert triples(dataset) == [("ann", "x", 4.0), ("ann", "y", 1.0), ("bob", "y", 3.5)]
    assert dataset.interactions.timestamps is not None
    assert dataset.interactions.timestamps.tolist() == [100, 300, 200]


def test_ids_stay_strings_with_their_leading_zeros(tmp_path: Path) -> None:
    dataset = read(write(tmp_path / "d.csv", "user,item\n007,0x\n7,1e3\n"))
    assert dataset.user_ids == ["007", "7"]
    assert dataset.item_ids == ["0x", "1e3"]


def test_columns_are_found_by_the_names_that_are_given(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "who,what,stars\na,x,1\nb,y,2\n")
    dataset = read(path, columns=ColumnNames("who", "what", "stars"))
    assert triples(dataset) == [("a", "x", 1.0), ("b", "y", 2.0)]


def test_the_latest_of_repeated_pairs_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "user,item,rating,timestamp\na,x,5,300\nb,y,2,1\na,x,1,200\na,x,3,100\n")
    dataset = read(path)
    assert triples(dataset) == [("a", "x", 5.0), ("b", "y", 2.0)]
    assert dataset.duplicates_merged == 2


def test_without_times_the_last_of_repeated_pairs_counts(tmp_path: Path) -> None:
    dataset = read(write(tmp_path / "d.csv", "user,item,rating\na,x,5\nb,y,2\na,x,1\n"))
    assert triples(dataset) == [("a", "x", 1.0), ("b", "y", 2.0)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ann,x", "2 columns where 4 are expected"),
        ("ann,x,4,5,6", "5 columns where 4 are expected"),
        (",x,4,5", "user is empty"),
        ("ann,,4,5", "item is empty"),
        ("ann,x,nan,5", "rating is 'nan', not a finite number"),
        ("ann,x,inf,5", "rating is 'inf', not a finite number"),
        ("ann,x,1e39,5", "rating is '1e39', not a finite number"),
        (",,,", "user is empty"),
        ("ann,x,4,1e300", "timestamp is '1e300', not a time"),
        ("ann,x,good,5", "rating is 'good', not a finite number"),
        ("ann,x,,5", "rating is missing, not a finite number"),
        ("ann,x,4,soon", "timestamp is 'soon', not a time"),
        (f"{'a' * 513},x,4,5", "user is longer than 512 bytes"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "d.csv", f"{GOOD}\n{line}\nbob,x,2,400\n")
    with pytest.raises(DataError, match=r"--skip-bad-rows") as caught:
        read(path)
    assert f"{path}, line 6: {reason}" in str(caught.value)


def test_lines_are_counted_across_quoted_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", 'user,item,note\nann,x,"two\nlines"\nbob,y,\n,y,\n')
    with pytest.raises(DataError, match="line 5: user is empty"):
        read(path)


def test_empty_lines_are_no_rows(tmp_path: Path) -> None:
    dataset = read(write(tmp_path / "d.csv", "user,item\n\nann,x\r\n\r\nbob,y\n\n"))
    assert len(dataset.interactions) == 2
    assert dataset.bad_rows_skipped == 0


def test_a_row_without_user_and_item_is_no_empty_line(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "user,item,note\nann,x,\n,,lost\nbob,y,\n")
    assert read(path, skip=True).bad_rows_skipped == 1


def test_fractions_of_a_second_decide_which_row_is_the_latest(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "user,item,rating,timestamp\na,x,9,100.9\na,x,1,100.1\nb,y,2,5\n")
    assert triples(read(path)) == [("a", "x", 9.0), ("b", "y", 2.0)]


def test_skipped_rows_are_counted_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", GOOD + "ann,x\n,y,1,1\nbob,x,none,1\nbob,x,2,400\n")
    dataset = read(path, skip=True)
    assert dataset.bad_rows_skipped == 3
    assert triples(dataset) == [("ann", "x", 4.0), ("ann", "y", 1.0), ("bob", "x", 2.0), ("bob", "y", 3.5)]


def test_ids_of_skipped_rows_leave_no_trace(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "user,item,rating\nghost,g,x\nann,x,1\nbob,y,2\n")
    dataset = read(path, skip=True)
    assert dataset.user_ids == ["ann", "bob"]
    assert dataset.item_ids == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("user,item,rating\n", "holds no usable row"),
        ("user,thing,rating\na,x,1\nb,y,2\n", "has no column 'item'; its columns are user, thing, rating"),
        ("user,item\nann,x\nann,y\n", "has one user only"),
        ("user,item\nann,x\nbob,x\n", "has one item only"),
    ],
)
def test_data_that_cannot_be_used_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "d.csv", text))


def test_a_file_of_other_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as utf-8 text"):
        read(write(tmp_path / "d.csv", "user,item\nJosé,x\nb,y\n", encoding="latin-1"))


def test_a_path_that_does_not_exist_is_refused() -> None:
    with pytest.raises(DataError, match="neither a path nor one of the known data sets"):
        load_dataset("no/such/place")


def test_times_may_be_dates(tmp_path: Path) -> None:
    dataset = read(write(tmp_path / "d.csv", "user,item,timestamp\na,x,1970-01-02\nb,y,1970-01-01T00:00:07Z\n"))
    assert dataset.interactions.timestamps is not None
    assert dataset.interactions.timestamps.tolist() == [86_400, 7]


def test_a_parquet_file_reads_as_the_same_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user": [1, 2, 1], "item": ["x", "y", "y"], "rating": [4.0, 3.5, 1.0]})
    frame.to_parquet(tmp_path / "d.parquet")
    frame.to_csv(tmp_path / "d.csv", index=False)
    from_parquet, from_csv = read(tmp_path / "d.parquet"), read(tmp_path / "d.csv")
    assert triples(from_parquet) == triples(from_csv)
    assert from_parquet.fingerprint() == from_csv.fingerprint()


def test_a_malformed_parquet_row_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pd.DataFrame({"user": ["a", "b"], "item": ["x", None], "rating": [1.0, 2.0]}).to_parquet(path)
    with pytest.raises(DataError, match="row 2: item is empty"):
        read(path)


def test_a_parquet_file_without_the_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pd.DataFrame({"user": ["a", "b"], "thing": ["x", "y"]}).to_parquet(path)
    with pytest.raises(DataError, match="has no column 'item'; its columns are user, thing"):
        read(path)


def test_parquet_times_are_seconds(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    times = pd.to_datetime(["1970-01-02", "1970-01-01T00:00:07.000000001"], format="ISO8601")
    pd.DataFrame({"user": ["a", "b"], "item": ["x", "y"], "timestamp": times}).to_parquet(path)
    timestamps = read(path).interactions.timestamps
    assert timestamps is not None
    assert timestamps.tolist() == [86_400, 7]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"user": [b"\xff", b"a"], "item": ["x", "y"]}, "column 'user' cannot be read as ids"),
        ({"user": [["a"], ["b"]], "item": ["x", "y"]}, "column 'user' cannot be read as ids"),
        ({"user": [1.5, 2.0], "item": ["x", "y"]}, "column 'user' holds fractions"),
        ({"user": ["a", "b"], "item": ["x", "y"], "rating": [[1.0], [2.0]]}, r"row 1: rating is '\[1\.0\]'"),
        ({"user": ["a", "b"], "item": ["x" * 513, "y"]}, "row 1: item is longer than 512 bytes"),
    ],
)
def test_parquet_columns_of_other_types_are_refused(
    tmp_path: Path, values: dict[str, list[object]], message: str
) -> None:
    pd.DataFrame(values).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "d.parquet")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("sku,title\n30,Chair\n", "no id of its first column, 'sku', is an item"),
        ("sku,title\n10,Lamp,extra\n", "cannot be read as item attributes"),
        ("", "cannot be read as item attributes"),
    ],
)
def test_item_attributes_that_would_be_lost_are_refused(tmp_path: Path, items: str, message: str) -> None:
    interactions = write(tmp_path / "d.csv", "user,item\na,10\nb,20\n")
    with pytest.raises(DataError, match=message):
        load_dataset(str(interactions), options=ReadOptions(items_path=write(tmp_path / "items.csv", items)))


def test_items_and_titles_called_null_keep_their_names(tmp_path: Path) -> None:
    interactions = write(tmp_path / "d.csv", "user,item\na,NA\nb,null\n")
    items = write(tmp_path / "items.csv", "sku,title\nNA,None\nnull,\n")
    titles = load_dataset(str(interactions), options=ReadOptions(items_path=items)).item_attributes["title"]
    assert titles[0] == "None"
    assert pd.isna(titles[1])


def test_one_column_cannot_be_two_things() -> None:
    with pytest.raises(ConfigError, match="only one of user, item"):
        ColumnNames("user", "item", "user")


def test_columns_and_items_are_refused_where_they_would_be_ignored(movielens_100k: Path) -> None:
    with pytest.raises(ConfigError, match="are for csv and parquet; movielens-100k names its own"):
        load_dataset(str(movielens_100k), options=ReadOptions(items_path=Path("items.csv")))


def test_item_attributes_come_from_a_file_of_their_own(tmp_path: Path) -> None:
    interactions = write(tmp_path / "d.csv", "user,item\na,10\nb,20\n")
    items = write(tmp_path / "items.csv", "sku,title,price\n20,Lamp,9.5\n30,Chair,20\n")
    dataset = load_dataset(str(interactions), options=ReadOptions(items_path=items))
    assert dataset.item_attributes["title"].tolist()[1] == "Lamp"
    assert pd.isna(dataset.item_attributes["title"][0])
    assert dataset.item_attributes["price"][1] == 9.5


def test_movielens_1m_titles_keep_their_colons(tmp_path: Path) -> None:
    write(tmp_path / "ratings.dat", "1::10::5::1\n2::20::3::2\n")
    write(
        tmp_path / "movies.dat",
        "10::Star Wars: Episode IV::A (1977)::Action|Sci-Fi\n20::Été (1999)::Drama\n",
        "latin-1",
    )
    dataset = load_dataset(str(tmp_path))
    assert dataset.format == "movielens-1m"
    assert dataset.item_attributes["title"].tolist() == ["Star Wars: Episode IV::A (1977)", "Été (1999)"]
    assert dataset.item_attributes["genres"].tolist() == [["Action", "Sci-Fi"], ["Drama"]]
    assert dataset.item_attributes["year"].tolist() == [1977, 1999]


def test_movielens_csv_titles_keep_their_commas_and_missing_genres_are_none(tmp_path: Path) -> None:
    write(tmp_path / "ratings.csv", "userId,movieId,rating,timestamp\n1,10,5.0,1\n2,20,0.5,2\n")
    write(tmp_path / "movies.csv", 'movieId,title,genres\n10,"Net, The (1995)",Crime\n20,Odd,(no genres listed)\n')
    dataset = load_dataset(str(tmp_path))
    assert dataset.format == "movielens-csv"
    assert dataset.item_attributes["title"].tolist() == ["Net, The (1995)", "Odd"]
    assert dataset.item_attributes["genres"].tolist() == [["Crime"], []]
    assert pd.isna(dataset.item_attributes["year"][1])


def test_films_in_another_encoding_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "ratings.csv", "userId,movieId,rating,timestamp\n1,10,5.0,1\n2,20,0.5,2\n")
    write(tmp_path / "movies.csv", "movieId,title,genres\n10,Amélie,Comedy\n", "latin-1")
    with pytest.raises(DataError, match=r"movies\.csv, near line"):
        load_dataset(str(tmp_path))


def test_a_broken_line_of_films_is_named(tmp_path: Path) -> None:
    write(tmp_path / "u.data", "1\t10\t5\t1\n2\t20\t3\t2\n")
    write(tmp_path / "u.item", "10|A (1990)|broken\n")
    with pytest.raises(DataError, match=r"u\.item, line 1: 3 columns where 24 are expected"):
        load_dataset(str(tmp_path))


def test_movielens_100k_is_what_grouplens_says_it_is(movielens_100k: Path) -> None:
    dataset = load_dataset(str(movielens_100k))
    assert (len(dataset.interactions), len(dataset.user_ids), len(dataset.item_ids)) == (100_000, 943, 1_682)
    assert dataset.interactions.ratings is not None
    assert np.bincount(dataset.interactions.ratings.astype(int)).tolist() == [0, 6_110, 11_370, 27_145, 34_174, 21_201]
    star_wars = dataset.item_attributes.iloc[dataset.item_ids.index("50")]
    assert star_wars["title"] == "Star Wars (1977)"
    assert star_wars["genres"] == ["Action", "Adventure", "Romance", "Sci-Fi", "War"]


def test_the_fingerprint_changes_with_any_interaction(tmp_path: Path) -> None:
    one = read(write(tmp_path / "1.csv", GOOD)).fingerprint()
    assert read(write(tmp_path / "2.csv", GOOD)).fingerprint() == one
    assert read(write(tmp_path / "3.csv", GOOD.replace("3.5", "3.0"))).fingerprint() != one
    assert read(write(tmp_path / "4.csv", GOOD.replace("bob", "bot"))).fingerprint() != one
