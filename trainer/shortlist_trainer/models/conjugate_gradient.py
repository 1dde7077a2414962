"""Conjugate gradients for the many small least-squares problems of implicit ALS, compiled for the CPU.

Takács, Pilászy & Tikk 2011, "Applications of the conjugate gradient method for implicit feedback collaborative
filtering". Each row's vectors are copied next to one another once and stay in the core's cache for all steps, which
is where the time of a step over scattered vectors goes.
"""

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from shortlist_trainer.data.dataset import Float32Array, Int32Array, Int64Array

# Rows are dealt to this many tasks, the longest rows first; more than any machine's cores, so that all stay busy.
_TASKS = 256

# A squared residual this small is rounding.
_SOLVED = np.float32(1e-20)


def improve_rows(
    rows: Float32Array,
    others: Float32Array,
    offsets: Int64Array,
    touched: Int32Array,
    order: Int64Array,
    everything: Float32Array,
    regularization: Float32Array,
    steps: int,
) -> float:
    """Moves each row w towards the minimum of sum over its j of (1 - w.h_j)^2 + w.E.w + regularization |w|^2.

    Args:
        rows: (n, d) where the search begins; overwritten with where it ends. Rows that touched nothing become zero.
        others: (m, d) the vectors h, fixed.
        offsets: (n + 1,) where each row's entries of ``touched`` begin.
        touched: rows of ``others``.
        order: (n,) in which order the rows are worked on.
        everything: (d, d) the matrix E.
        regularization: (n,) one weight a row.
        steps: of conjugate gradients; d of them are exact but for rounding.

    Returns:
        The sum over the rows of what is to be small.
    """
    sums = np.zeros(len(rows), dtype=np.float32)
    _improve_rows(rows, others, offsets, touched, order, everything, regularization, steps, sums)
    return float(sums.sum(dtype=np.float64))


@njit(parallel=True, fastmath=True, cache=True)
def _improve_rows(
    rows: npt.NDArray[np.float32],
    others: npt.NDArray[np.float32],
    offsets: npt.NDArray[np.int64],
    touched: npt.NDArray[np.int32],
    order: npt.NDArray[np.int64],
    everything: npt.NDArray[np.float32],
    regularization: npt.NDArray[np.float32],
    steps: int,
    sums: npt.NDArray[np.float32],
) -> None:
    count, size = rows.shape
    longest = offsets[order[0] + 1] - offsets[order[0]]
    for task in prange(_TASKS):
        near = np.empty((longest, size), np.float32)
        right = np.empty(size, np.float32)
        residual = np.empty(size, np.float32)
        direction = np.empty(size, np.float32)
        image = np.empty(size, np.float32)  # the problem's matrix times a vector
        for place in range(task, count, _TASKS):
            row = order[place]
            begin, end = offsets[row], offsets[row + 1]
            if begin == end:
                rows[row] = 0
                continue
            right[:] = 0
            for k in range(end - begin):
                h = others[touched[begin + k]]
                for i in range(size):
                    near[k, i] = h[i]
                    right[i] += h[i]
            residual[:] = right
            _improve(rows[row], near, end - begin, everything, regularization[row], steps, residual, direction, image)
            # With r = b - A w, |S| - 2 w.b + w.A w is |S| - w.b - w.r, which needs no other pass over the vectors.
            sums[row] = end - begin - _dot(rows[row], right) - _dot(rows[row], residual)


# Loops are spelled out: numba makes vector instructions of them, and of array expressions temporary arrays.
@njit(fastmath=True, cache=True)
def _improve(
    w: npt.NDArray[np.float32],
    near: npt.NDArray[np.float32],
    length: int,
    everything: npt.NDArray[np.float32],
    weight: np.float32,
    steps: int,
    residual: npt.NDArray[np.float32],
    direction: npt.NDArray[np.float32],
    image: npt.NDArray[np.float32],
) -> None:
    """Moves one row; ``residual`` comes in as the right side of its equations."""
    size = len(w)
    _apply(everything, near, length, weight, w, image)
    for i in range(size):
        residual[i] -= image[i]
        direction[i] = residual[i]
    square = _dot(residual, residual)
    for _ in range(steps):
        if square < _SOLVED:
            break
        _apply(everything, near, length, weight, direction, image)
        stride = square / _dot(direction, image)
        for i in range(size):
            w[i] += stride * direction[i]
            residual[i] -= stride * image[i]
        before, square = square, _dot(residual, residual)
        for i in range(size):
            direction[i] = residual[i] + square / before * direction[i]


@njit(fastmath=True, cache=True)
def _apply(
    everything: npt.NDArray[np.float32],
    near: npt.NDArray[np.float32],
    length: int,
    weight: np.float32,
    vector: npt.NDArray[np.float32],
    image: npt.NDArray[np.float32],
) -> None:
    """Image = (E + near' near + weight) vector, of ``near`` the first ``length`` rows."""
    size = len(vector)
    for i in range(size):
        image[i] = _dot(everything[i], vector) + weight * vector[i]
    for k in range(length):
        score = _dot(near[k], vector)
        for i in range(size):
            image[i] += score * near[k, i]


@njit(fastmath=True, cache=True)
def _dot(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> np.float32:
    total = np.float32(0)
    for i in range(len(left)):
        total += left[i] * right[i]
    return total
