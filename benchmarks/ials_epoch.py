"""Time of an epoch of implicit ALS against the `implicit` library's conjugate-gradient ALS, at equal quality.

Both factorize the training part of the NCF split of ML-1M on all cores; an epoch is both sides. Quality is HR@10 and
NDCG@10 of both sets of vectors under the leave-one-out protocol, printed beside the time. Rounds are interleaved, and
the medians are of rounds.
"""

import argparse
import io
import statistics
import time

import numpy as np
import scipy.sparse
import torch
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.data.source import load_dataset
from shortlist_trainer.data.split import given_split
from shortlist_trainer.evaluation.protocols import evaluate
from shortlist_trainer.models.base import Embeddings, Float32Array, Recommender, RowArray, TrainingRun
from shortlist_trainer.models.fit import fit
from shortlist_trainer.models.ials import ImplicitALS, ImplicitALSConfig
from shortlist_trainer.progress import Progress

EPOCHS = 16
ROUNDS = 5


class _Vectors(Recommender):
    """Vectors of another library."""

    protocol = "full-rank"

    def __init__(self, users: Float32Array, items: Float32Array) -> None:
        self._users, self._items = users, items

    def predict(self, users: RowArray, items: RowArray) -> Float32Array:
        return np.asarray((self._users[users] * self._items[items]).sum(axis=1), dtype=np.float32)

    def embeddings(self) -> Embeddings:
        return Embeddings(self._users, self._items, "preference")


def ours(train: Interactions, size: int) -> tuple[Recommender, float]:
    """The model and the median seconds of its epochs."""
    config = ImplicitALSConfig(embedding_size=size, epochs=EPOCHS)
    run = TrainingRun(torch.device("cpu"), 42, Progress("ials", io.StringIO()))
    fitted = fit(ImplicitALS, config, train, run)
    return fitted.model, statistics.median(record.seconds for record in fitted.history.epochs)


def theirs(train: Interactions, size: int) -> tuple[Recommender, float]:
    """The model and the mean seconds of its epochs."""
    pairs = (np.ones(len(train), dtype=np.float32), (train.users, train.items))
    matrix = scipy.sparse.csr_matrix(pairs, shape=(train.user_count, train.item_count))
    # Their loss has confidence alpha for what was touched and 1 for the rest; weights 1 + .3 and .3 are 4.3 and 1.
    model = AlternatingLeastSquares(
        factors=size, alpha=4.33, regularization=8.0, iterations=EPOCHS, random_state=42, use_cg=True
    )
    with threadpool_limits(1, "blas"):
        started = time.perf_counter()
        model.fit(matrix, show_progress=False)
        seconds = (time.perf_counter() - started) / EPOCHS
    return _Vectors(np.asarray(model.user_factors), np.asarray(model.item_factors)), seconds


def main() -> None:
    """Prints times, quality and ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ncf", required=True, help="the folder or zip with ml-1m.train.rating and the rest")
    parser.add_argument("--embedding-size", type=int, default=64)
    options = parser.parse_args()
    split = given_split(load_dataset(options.ncf, "ncf"))
    size = options.embedding_size
    ours(split.train, size)  # compiles
    rounds = [(ours(split.train, size), theirs(split.train, size)) for _ in range(ROUNDS)]
    seconds = [statistics.median(times) for times in zip(*[(a[1], b[1]) for a, b in rounds], strict=True)]
    quality = []
    for model, _ in rounds[0]:
        metrics = evaluate(model, split, "leave-one-out").metrics
        quality.append(f"HR@10 {metrics['hr@10']:.4f} NDCG@10 {metrics['ndcg@10']:.4f}")
    print(
        f"d={size}: ials {seconds[0]:.3f} s an epoch ({quality[0]}), implicit {seconds[1]:.3f} s ({quality[1]}), "
        f"ratio {seconds[0] / seconds[1]:.2f}"
    )


if __name__ == "__main__":
    main()
