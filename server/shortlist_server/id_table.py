"""External ids and rows, read from memory-mapped arrays. docs/model-format.md describes them."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

UNKNOWN = -1

_REMEMBERED = 1 << 16
"""So many ids of rows are kept at hand in each form: 7 to 9 MB where they are short."""


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
        self._offsets = offsets
        self._hashes = hashes
        self._rows = rows
        # Most answers are of the same items.
        self._asked_for: defaultdict[Callable[[bytes], bytes], dict[int, bytes]] = defaultdict(dict)

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

    def encoded(self, rows: npt.ArrayLike, form: Callable[[bytes], bytes] = bytes) -> list[bytes]:
        """The external ids of rows (n,) in UTF-8, the i-th for the i-th, in a form that is remembered for most."""
        rows = np.asarray(rows)
        numbers = rows.tolist()
        remembered = self._asked_for[form]
        try:
            return [remembered[row] for row in numbers]
        except KeyError:
            pass
        begins, ends = self._offsets[rows].tolist(), self._offsets[rows + 1].tolist()
        encoded = [form(self._view[begin:end].tobytes()) for begin, end in zip(begins, ends, strict=True)]
        if len(numbers) <= _REMEMBERED:
            if len(remembered) + len(numbers) > _REMEMBERED:
                remembered.clear()
            remembered.update(zip(numbers, encoded, strict=True))
        return encoded
