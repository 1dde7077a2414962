"""What Gibbs sampling of matrix factorizations spends its time on, compiled for the CPU."""

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from shortlist_trainer.data.dataset import Float32Array
from shortlist_trainer.models.rows import Rows

# Rows are dealt to this many tasks, the longest rows first; more than any machine's cores, so that all stay busy.
_TASKS = 256


def sample_rows(
    vectors: Float32Array,
    features: Float32Array,
    offsets_of_others: Float32Array,
    rows: Rows,
    ratings: Float32Array,
    prior: Float32Array,
    precision: Float32Array,
    noise_precision: np.float32,
    noise: Float32Array,
) -> float:
    """Draws each row's vector a from its distribution given everything else.

    The rating of row r and other j is features[j] . a_r + offsets_of_others[j] plus normal noise, and a_r has a normal
    prior: Salakhutdinov & Mnih 2008, equations 11 to 13.

    Args:
        vectors: (n, k) overwritten with the draws.
        features: (m, k).
        offsets_of_others: (m,).
        rows: which others each row has ratings of.
        ratings: in the order of ``rows.others``.
        prior: (n, k) prior precision times prior mean.
        precision: (k, k) of the prior.
        noise_precision: of a rating.
        noise: (n, k) standard normal numbers.

    Returns:
        The squared error of all ratings after the draw.
    """
    errors = np.zeros(len(vectors), dtype=np.float64)
    _sample_rows(
        vectors,
        features,
        offsets_of_others,
        rows.offsets,
        rows.others,
        rows.longest_first,
        ratings,
        prior,
        precision,
        noise_precision,
        noise,
        errors,
    )
    return float(errors.sum())


def sum_rows(rows: Rows, others: Float32Array) -> Float32Array:
    """(n, k) for each row the sum of the vectors (m, k) of those it has ratings of."""
    sums = np.zeros((rows.row_count, others.shape[1]), dtype=np.float32)
    _sum_rows(rows.offsets, rows.others, rows.longest_first, others, sums)
    return sums


# Loops are spelled out: numba makes vector instructions of them, and of array expressions temporary arrays.
@njit(parallel=True, fastmath=True, cache=True)
def _sample_rows(
    vectors: npt.NDArray[np.float32],
    features: npt.NDArray[np.float32],
    offsets_of_others: npt.NDArray[np.float32],
    offsets: npt.NDArray[np.int64],
    others: npt.NDArray[np.int32],
    order: npt.NDArray[np.int64],
    ratings: npt.NDArray[np.float32],
    prior: npt.NDArray[np.float32],
    precision: npt.NDArray[np.float32],
    noise_precision: np.float32,
    noise: npt.NDArray[np.float32],
    errors: npt.NDArray[np.float64],
) -> None:
    count, size = vectors.shape
    for task in prange(_TASKS):
        matrix = np.empty((size, size), np.float32)
        vector = np.empty(size, np.float32)
        for place in range(task, count, _TASKS):
            row = order[place]
            begin, end = offsets[row], offsets[row + 1]
            _normal_equations(features, offsets_of_others, others[begin:end], ratings[begin:end], matrix, vector)
            for i in range(size):
                vector[i] = prior[row, i] + noise_precision * vector[i]
                for j in range(i + 1):
                    matrix[i, j] = precision[i, j] + noise_precision * matrix[i, j]
            _draw(matrix, vector, noise[row])
            for i in range(size):
                vectors[row, i] = vector[i]
            error = 0.0
            for k in range(begin, end):
                x = features[others[k]]
                missing = ratings[k] - offsets_of_others[others[k]]
                for i in range(size):
                    missing -= x[i] * vector[i]
                error += missing * missing
            errors[row] = error


@njit(fastmath=True, cache=True)
def _normal_equations(
    features: npt.NDArray[np.float32],
    offsets_of_others: npt.NDArray[np.float32],
    others: npt.NDArray[np.int32],
    ratings: npt.NDArray[np.float32],
    matrix: npt.NDArray[np.float32],
    vector: npt.NDArray[np.float32],
) -> None:
    """Matrix = sum of x x' (lower triangle) and vector = sum of x y over one row's ratings."""
    size = len(vector)
    matrix[:, :] = 0
    vector[:] = 0
    count = len(others)
    k = 0
    while k + 4 <= count:  # four at a time, so that the matrix is loaded and stored a quarter as often
        j0, j1, j2, j3 = others[k], others[k + 1], others[k + 2], others[k + 3]
        x0, x1, x2, x3 = features[j0], features[j1], features[j2], features[j3]
        y0, y1 = ratings[k] - offsets_of_others[j0], ratings[k + 1] - offsets_of_others[j1]
        y2, y3 = ratings[k + 2] - offsets_of_others[j2], ratings[k + 3] - offsets_of_others[j3]
        for i in range(size):
            a0, a1, a2, a3 = x0[i], x1[i], x2[i], x3[i]
            vector[i] += a0 * y0 + a1 * y1 + a2 * y2 + a3 * y3
            for j in range(i + 1):
                matrix[i, j] += a0 * x0[j] + a1 * x1[j] + a2 * x2[j] + a3 * x3[j]
        k += 4
    while k < count:
        x0 = features[others[k]]
        y0 = ratings[k] - offsets_of_others[others[k]]
        for i in range(size):
            a0 = x0[i]
            vector[i] += a0 * y0
            for j in range(i + 1):
                matrix[i, j] += a0 * x0[j]
        k += 1


@njit(fastmath=True, cache=True)
def _draw(matrix: npt.NDArray[np.float32], vector: npt.NDArray[np.float32], noise: npt.NDArray[np.float32]) -> None:
    """Makes of ``vector`` a draw from N(matrix^-1 vector, matrix^-1); of ``matrix`` only the lower triangle is read."""
    size = len(vector)
    for i in range(size):  # Cholesky factor L, and L^-1 vector along with it
        for j in range(i):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            matrix[i, j] = total / matrix[j, j]
        total = matrix[i, i]
        right = vector[i]
        for k in range(i):
            total -= matrix[i, k] * matrix[i, k]
            right -= matrix[i, k] * vector[k]
        matrix[i, i] = np.sqrt(total)
        vector[i] = right / matrix[i, i]
    for i in range(size):  # L'^-1 (L^-1 vector + noise) has the mean and the covariance asked for
        vector[i] += noise[i]
    for i in range(size - 1, -1, -1):
        vector[i] /= matrix[i, i]
        for k in range(i):
            vector[k] -= matrix[i, k] * vector[i]


@njit(parallel=True, fastmath=True, cache=True)
def _sum_rows(
    offsets: npt.NDArray[np.int64],
    touched: npt.NDArray[np.int32],
    order: npt.NDArray[np.int64],
    others: npt.NDArray[np.float32],
    sums: npt.NDArray[np.float32],
) -> None:
    count, size = sums.shape
    for task in prange(_TASKS):
        total = np.empty(size, np.float32)
        for place in range(task, count, _TASKS):
            row = order[place]
            total[:] = 0
            for k in range(offsets[row], offsets[row + 1]):
                x = others[touched[k]]
                for i in range(size):
                    total[i] += x[i]
            for i in range(size):
                sums[row, i] = total[i]
