"""What several queries found, in columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from shortlist_server.errors import QueryError
from shortlist_server.retrieval.queries import Ranking, Remarks

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_NO_ROWS, _NO_SCORES = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)


@dataclass(slots=True, eq=False)
class Rankings:
    """The answers to queries, the i-th for the i-th: objects for each would take as long as the search.

    Attributes:
        rows: (m,) int64 item rows, one ranking after the other, best first.
        scores: (m,) float32, theirs.
        lengths: (b,) how many items each ranking has, none where it is an error.
        remarks: what else is to be said of each, or why there is none.
    """

    rows: Int64Array
    scores: Float32Array
    lengths: Int64Array
    remarks: Sequence[Remarks | QueryError]

    @classmethod
    def of(cls, each: Sequence[Ranking | QueryError]) -> "Rankings":
        """The same of rankings that were made one by one."""
        there = [one for one in each if isinstance(one, Ranking)]
        return cls(
            np.concatenate([_NO_ROWS, *(one.rows for one in there)]),
            np.concatenate([_NO_SCORES, *(one.scores for one in there)]),
            np.array([len(one.rows) if isinstance(one, Ranking) else 0 for one in each], dtype=np.int64),
            [one.remarks if isinstance(one, Ranking) else one for one in each],
        )

    def __len__(self) -> int:
        return len(self.remarks)

    def __iter__(self) -> Iterator[Ranking | QueryError]:
        bounds = pairwise(accumulate(self.lengths.tolist(), initial=0))
        for (begin, end), remarks in zip(bounds, self.remarks, strict=True):
            if isinstance(remarks, QueryError):
                yield remarks
            else:
                yield Ranking(self.rows[begin:end], self.scores[begin:end], remarks)
