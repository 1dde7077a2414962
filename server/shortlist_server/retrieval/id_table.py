"""External ids and rows, read from memory-mapped arrays. docs/model-format.md describes them."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

UNKNOWN = -1


class IdTable:
    """Both directions between external ids and rows, without an object in memory for every id.

    Args:
        text: uint8, all ids in UTF-8 one after the other.
        offsets: (n + 1,) uint64, where each begins in ``text``.
        hashes: (n,) uint64, ascending: the 8-byte BLAKE2b of each id.
        rows: (n,) uint32, the row that each hash belongs to.
    """

    def __init__(
        self,
        text: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.uint64],
        hashes: npt.NDArray[np.uint64],
        rows: npt.NDArray[np.uint32],
    ) -> None:
        self._text = text
        self._view = memoryview(text)  # type: ignore[arg-type]  # numpy's arrays are buffers
        self._offsets = offsets.view(np.int64)
        self._hashes = hashes
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, external_id: str) -> int:
        """The row of an id, or ``UNKNOWN``."""
        return int(self.rows([external_id])[0])

    def rows(self, external_ids: Sequence[str]) -> Int64Array:
        """(n,) the rows of ids, the i-th for the i-th, ``UNKNOWN`` where the table has no such id."""
        encoded = [external_id.encode("utf-8", "surrogatepass") for external_id in external_ids]
        if not encoded or not len(self):
            return np.full(len(encoded), UNKNOWN, dtype=np.int64)
        digests = b"".join([blake2b(one, digest_size=8).digest() for one in encoded])
        hashes = np.frombuffer(digests, dtype="<u8")
        positions = self._hashes.searchsorted(hashes)
        rows = self._rows[np.minimum(positions, len(self) - 1)].astype(np.int64)
        begins, ends = self._offsets[rows].tolist(), self._offsets[rows + 1].tolist()
        view = self._view
        for place, (one, begin, end) in enumerate(zip(encoded, begins, ends, strict=True)):
            if view[begin:end] != one:  # unknown, or another id has the same hash
                rows[place] = self._find(one, hashes[place], int(positions[place]))
        return rows

    def _find(self, encoded: bytes, hashed: np.uint64, position: int) -> int:
        # Different ids may share a hash, so each candidate's text is compared.
        while position < len(self._hashes) and self._hashes[position] == hashed:
            row = int(self._rows[position])
            if self.encoded([row]) == [encoded]:
                return row
            position += 1
        return UNKNOWN

    def ids(self, rows: npt.ArrayLike) -> list[str]:
        """The external ids of rows (n,), the i-th for the i-th."""
        return [str(one, "utf-8") for one in self.encoded(rows)]

    def encoded(self, rows: npt.ArrayLike) -> list[bytes]:
        """The external ids of rows (n,) in UTF-8, the i-th for the i-th."""
        begins, lengths = self._spans(np.asarray(rows, dtype=np.int64))
        spans = zip(begins.tolist(), lengths.tolist(), strict=True)
        return [self._view[begin : begin + length].tobytes() for begin, length in spans]

    def padded(self, rows: Int64Array, width: int) -> tuple[npt.NDArray[np.uint8], Int64Array] | None:
        """The same as one array, which for many takes a fraction of the time; None where one is longer than ``width``.

        Returns:
            (n, at most ``width``) uint8, each id with whatever follows it, and (n,) how many bytes of it are the id.
        """
        begins, lengths = self._spans(rows)
        longest = int(lengths.max(initial=0))
        if longest > width:
            return None
        return self._text.take(begins[:, None] + np.arange(longest), mode="clip"), lengths

    def _spans(self, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """(n,) where the ids of rows begin in the text and how many bytes they have."""
        begins = self._offsets[rows]
        return begins, self._offsets[rows + 1] - begins
