"""Vectors whose inner products come near the scores of a network, so that an index can find what it would rank high."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from shortlist_trainer.data.dataset import Float32Array, Int64Array

ScoreBlock = Callable[[Int64Array, Int64Array], Float32Array]
"""User rows (m,) and item rows (c,) to the scores (m, c) of all their pairs."""

# So many users and items are sampled for every column: enough that a sample's best columns are the whole table's.
_SAMPLES_A_COLUMN = 16
_PAIRS_AT_ONCE = 1 << 16
_NEGLIGIBLE = 1e-5  # a singular value of this share of the largest is float32 rounding


def fit_vectors(
    score: ScoreBlock, user_count: int, item_count: int, size: int, generator: torch.Generator
) -> tuple[Float32Array, Float32Array]:
    """Least-squares vectors for scores that are too many to compute.

    The scores of sampled users with sampled items are factorized exactly; then every item's vector is solved from its
    scores with the sampled users, and every user's from its scores with the sampled items (as in Drineas, Kannan &
    Mahoney 2006, "Fast Monte Carlo Algorithms for Matrices III"). What has rank ``size`` or less is met exactly, and
    users or items whose scores are all zero get zero vectors.

    Args:
        score: the network.
        user_count: rows of the user table.
        item_count: rows of the item table.
        size: d, columns of the vectors.
        generator: draws the samples.

    Returns:
        Users (user_count, d) and items (item_count, d).
    """
    users, items = (_sample(count, size, generator) for count in (user_count, item_count))
    left, lengths, _ = np.linalg.svd(score(users, items), full_matrices=False)
    of_sampled = np.zeros((len(users), size), dtype=np.float32)
    kept = min(size, len(lengths))
    of_sampled[:, :kept] = left[:, :kept] * np.sqrt(lengths[:kept])
    item_vectors = _solve(lambda rows: score(users, rows).T, item_count, of_sampled)
    user_vectors = _solve(lambda rows: score(rows, items), user_count, item_vectors[items])
    return user_vectors, item_vectors


def _sample(count: int, size: int, generator: torch.Generator) -> Int64Array:
    drawn: Int64Array = torch.randperm(count, generator=generator)[: _SAMPLES_A_COLUMN * size].numpy()
    return drawn


def _solve(
    score: Callable[[Int64Array], npt.NDArray[np.float32]], count: int, others: npt.NDArray[np.float32]
) -> Float32Array:
    """The vectors (count, d) whose inner products with ``others`` (s, d) are nearest to ``score`` of rows, (…, s)."""
    solution = np.linalg.pinv(others, rcond=_NEGLIGIBLE).T.astype(np.float32)  # (s, d)
    blocks = np.array_split(np.arange(count), -(-count * len(others) // _PAIRS_AT_ONCE))
    return np.concatenate([score(rows) @ solution for rows in blocks])
