"""Loads damaged folders whose checksums fit, and asks them everything: for a process of its own, which may not survive.

``python -m tests.reliability.survival SCRATCH SEED COUNT FOLDER...`` damages one folder after the other. It says
before it loads one what is wrong with it, and afterwards what became of it.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from shortlist_server.errors import BadModel, QueryError
from shortlist_server.model.folder import LoadedModel, load_model
from shortlist_server.model.manifest import MANIFEST
from shortlist_server.retrieval.queries import (
    ClusterKind,
    ClusterQuery,
    Fallback,
    History,
    Ranking,
    RecommendQuery,
    SimilarItemsQuery,
)
from tests.reliability.faults import UNNOTICED, damage, sign
from tests.reliability.worlds import ITEMS, USERS


def main(scratch: Path, seed: int, count: int, folders: Sequence[Path]) -> None:
    """Damages copies of folders, one file at a time, and tells what became of each."""
    rng = np.random.default_rng(seed)
    for folder in islice(cycle(folders), count):
        names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
        name, kind = str(rng.choice(names)), str(rng.choice(list(UNNOTICED)))
        copy = scratch / folder.name
        shutil.copytree(folder, copy, copy_function=os.link)
        damage(copy / name, UNNOTICED[kind], rng)
        sign(copy)
        sys.stdout.write(f"{name}, {kind}: ")
        sys.stdout.flush()
        sys.stdout.write(f"{_outcome(copy, name)}\n")
        shutil.rmtree(copy)


def _outcome(folder: Path, name: str) -> str:
    try:
        model = load_model(folder, "cpu")
    except BadModel as error:
        return f"refused: {error}" if str(error).startswith(name) else f"WRONG NAME: {error}"
    except Exception as error:  # noqa: BLE001 # whatever it is, the test shows it
        return f"NOT REFUSED BY NAME: {error!r}"
    try:
        for answered in _ask(model):
            answered()
    except Exception as error:  # noqa: BLE001 # whatever it is, the test shows it
        return f"FAILED WHEN ASKED: {error!r}"
    return "served"


def _ask(model: LoadedModel) -> Iterator[Callable[[], object]]:
    recommender = model.recommender
    users, items = recommender.user_ids.ids(range(USERS)), recommender.item_ids.ids(range(ITEMS))
    some = [item for item in items[:20] if item] or ["i1"]

    def check(answers: Iterable[Ranking | QueryError]) -> None:
        for answer in answers:
            if isinstance(answer, QueryError):
                continue
            rows = answer.rows
            assert ((rows >= 0) & (rows < ITEMS)).all(), rows
            recommender.item_ids.ids(rows)
            for attribute in recommender.attributes.names:
                recommender.attributes.values(attribute, rows)

    def quietly(call: Callable[[], object]) -> None:
        with contextlib.suppress(QueryError):
            call()

    yield lambda: check(recommender.recommend([RecommendQuery(user, k=k) for user in users for k in (10, 200)]))
    yield lambda: check(recommender.recommend([RecommendQuery(user, k=5, rerank=True) for user in users]))
    yield lambda: check(recommender.recommend([RecommendQuery(History(some), k=10)]))
    yield lambda: check(
        recommender.recommend([RecommendQuery("?", k=10, fallback=one) for one in (Fallback.POPULAR, Fallback.CLUSTER)])
    )
    yield lambda: check(recommender.similar_items([SimilarItemsQuery([item], k=10) for item in some]))
    yield lambda: quietly(lambda: recommender.score(users[0], some))
    for kind in ClusterKind:
        yield partial(quietly, partial(recommender.all_clusters, kind, 10))
        yield partial(quietly, partial(recommender.cluster, ClusterQuery(kind, 0)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), [Path(folder) for folder in sys.argv[4:]])
