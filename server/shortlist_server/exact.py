"""The best rows of a table by inner product, exactly: every row is scored, in blocks that stay in a core's cache."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.integer]

# Scores held at once: 2^21 float32 are 8 MiB. More queries at once would share a reading of the table, and fall out of
# the cache between being scored and being ranked.
_SCORES_AT_ONCE = 1 << 21

# The rows of a wide score matrix are ranked by the best of each of so many-th part first.
_FOLDS = 64


def best_rows(
    table: Float32Array,
    scale: Float32Array | None,
    queries: Float32Array,
    ks: Sequence[int],
    excluded: Sequence[RowArray],
    forbidden: npt.NDArray[np.bool_] | None = None,
) -> list[tuple[Int64Array, Float32Array]]:
    """For each query the rows with the highest ``scale * (table @ query)`` that may be returned, best first.

    Of equal scores the lower row comes first, so that a ranking does not depend on how much of it is asked for.

    Args:
        table: (n, d) float32.
        scale: (n,) float32, or None for ones.
        queries: (b, d) float32.
        ks: (b,) how many rows each wants.
        excluded: (b,) of (m,) rows to leave out.
        forbidden: (n,) rows to leave out for every query; None for none.

    Returns:
        (b,) of rows (r,) and scores (r,), r being k or as many as there are.
    """
    count = len(table)
    ranked: list[tuple[Int64Array, Float32Array]] = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
    at_once = max(1, _SCORES_AT_ONCE // max(count, 1))
    by_k = sorted(range(len(queries)), key=ks.__getitem__)  # a deep ranking shall not make shallow ones deep
    for start in range(0, len(by_k), at_once):
        block = by_k[start : start + at_once]
        scores = _products(queries[block], table)
        if scale is not None:
            scores *= torch.from_numpy(scale)
        if forbidden is not None:
            scores.masked_fill_(torch.from_numpy(forbidden), -torch.inf)
        left_out = [excluded[place] for place in block]
        begins = np.repeat(np.arange(len(block)) * count, [len(rows) for rows in left_out])
        scores.numpy().reshape(-1)[begins + np.concatenate(left_out)] = -np.inf
        # One more than wanted, which tells whether the last one wanted has its equal.
        best, rows = (found.numpy() for found in _highest(scores, min(ks[block[-1]] + 1, count)))
        tied = ((best[:, 1:] == best[:, :-1]) & (best[:, 1:] > -np.inf)).any(axis=1)
        for row in np.flatnonzero(tied).tolist():
            rows[row] = np.argsort(-scores[row].numpy(), kind="stable")[: rows.shape[1]]
        lengths = np.count_nonzero(best > -np.inf, axis=1).tolist()
        for row, place in enumerate(block):
            length = min(ks[place], lengths[row])
            ranked[place] = rows[row, :length], best[row, :length]
    return ranked


def _products(queries: Float32Array, table: Float32Array) -> Tensor:
    """(c, n) inner products of (c, d) and (n, d)."""
    if len(queries) == 1:  # numpy has it in half of torch's time, which for more queries is the other way round
        return torch.from_numpy(queries @ table.T)
    return torch.from_numpy(queries) @ torch.from_numpy(table).T


def _highest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(b, k) the highest scores of each row of (b, n), descending, and their columns."""
    count = scores.shape[1]
    width = count // _FOLDS
    if k >= width // 4:  # nothing to win
        return torch.topk(scores, k)
    # Folded, each of ``width`` columns holds up to _FOLDS scores. The k highest lie in the k columns with the highest
    # maxima, since each of them would have to be beaten by k others to lie elsewhere.
    folded = scores[:, : width * _FOLDS].view(-1, _FOLDS, width)
    columns = torch.topk(folded.amax(1), k, sorted=False).indices  # (b, k)
    columns = columns[:, None].expand(-1, _FOLDS, -1)
    numbers = columns + width * torch.arange(_FOLDS)[None, :, None]
    rest = torch.arange(width * _FOLDS, count).expand(len(scores), -1)
    candidates = torch.cat([folded.gather(2, columns).flatten(1), scores[:, width * _FOLDS :]], dim=1)
    best, places = torch.topk(candidates, k)
    return best, torch.cat([numbers.flatten(1), rest], dim=1).gather(1, places)
