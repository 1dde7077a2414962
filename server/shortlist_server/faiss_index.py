"""A FAISS index as the manifest describes it."""

from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from shortlist_server.item_attributes import AllowedItems

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


class FaissIndex:
    """A FAISS index with the parameters it is searched with.

    Args:
        index: the index.
        kind: "flat" or "ivf".
        search_parameters: by FAISS's names, such as nprobe.
    """

    def __init__(self, index: Any, kind: str, search_parameters: Mapping[str, float]) -> None:
        self._index = index
        self.exact = kind == "flat"
        self._parameters = dict(search_parameters)

    def search(
        self, queries: Float32Array, k: int, effort: float = 1.0, allowed: AllowedItems | None = None
    ) -> tuple[Float32Array, Int64Array]:
        """The best items of each query.

        Args:
            queries: (b, d) float32.
            k: how many.
            effort: multiplies nprobe.
            allowed: the only items that may come back; None for all.

        Returns:
            (b, k) inner products and (b, k) rows, best first, -1 where the index brings fewer.
        """
        parameters = {name: round(value * effort) for name, value in self._parameters.items()}
        library: Any = faiss  # its types leave its own constructors out
        selector = None if allowed is None else library.IDSelectorBitmap(allowed.bitmap)
        scores, rows = self._index.search(queries, k, params=library.SearchParametersIVF(sel=selector, **parameters))
        return scores, rows
