"""Item attributes of the MovieLens formats: title, year and genres."""

import re
from collections.abc import Iterable

import pandas as pd

_YEAR = re.compile(r"\((\d{4})\)\s*$")
_NO_GENRE = {"unknown", "(no genres listed)", ""}


def film_attributes(films: Iterable[tuple[str, str, Iterable[str]]]) -> pd.DataFrame:
    """Attributes indexed by item id.

    Args:
        films: item id, title as the data gives it ("Toy Story (1995)") and genres of each film.

    Returns:
        Columns title (str), year (Int64, missing where the title names none) and genres (list of str).
    """
    ids, titles, years, genres = [], [], [], []
    for item_id, title, names in films:
        year = _YEAR.search(title)
        ids.append(item_id)
        titles.append(title.strip())
        years.append(int(year.group(1)) if year else None)
        genres.append([name for name in names if name not in _NO_GENRE])
    return pd.DataFrame(
        {"title": titles, "year": pd.array(years, dtype="Int64"), "genres": pd.Series(genres, dtype=object).to_numpy()},
        index=pd.Index(ids, dtype=object),
    )
