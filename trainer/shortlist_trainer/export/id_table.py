"""External ids as arrays that a server can memory-map and search.

The layout is described in docs/model-format.md. The server has a reader of its own.
"""

import hashlib

import numpy as np
import numpy.typing as npt

RowArray = npt.NDArray[np.integer]
IdTable = dict[str, npt.NDArray[np.generic]]


def id_hash(external_id: bytes) -> int:
    """The first 8 bytes of BLAKE2b with an 8-byte digest, as a little-endian unsigned number."""
    return int.from_bytes(hashlib.blake2b(external_id, digest_size=8).digest(), "little")


def id_table(ids: list[str]) -> IdTable:
    """The arrays of an id table.

    Args:
        ids: distinct external ids, the i-th being that of row i.

    Returns:
        ``text`` uint8, all ids in UTF-8 one after the other; ``offsets`` (n + 1,) uint64, where each begins in it;
        ``hashes`` (n,) uint64, ascending; ``rows`` (n,) uint32, the row that each hash belongs to.
    """
    encoded = [external_id.encode() for external_id in ids]
    hashes = np.fromiter((id_hash(one) for one in encoded), dtype=np.uint64, count=len(encoded))
    offsets = np.zeros(len(encoded) + 1, dtype=np.uint64)
    np.cumsum([len(one) for one in encoded], out=offsets[1:])
    rows = np.argsort(hashes, kind="stable").astype(np.uint32)
    return {
        "text": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "offsets": offsets,
        "hashes": hashes[rows],
        "rows": rows,
    }


def ids_of(table: IdTable, rows: RowArray) -> list[str]:
    """The external ids of rows, the i-th for the i-th."""
    text, offsets = table["text"], table["offsets"]
    return [text[int(offsets[row]) : int(offsets[row + 1])].tobytes().decode() for row in rows.tolist()]


def row_of(table: IdTable, external_id: str) -> int | None:
    """The row of an id; None where the table does not have it."""
    hashed = np.uint64(id_hash(external_id.encode("utf-8", "surrogatepass")))
    first, end = (int(np.searchsorted(table["hashes"], hashed, side=side)) for side in ("left", "right"))
    same_hash = table["rows"][first:end].astype(np.int64)
    for row, found in zip(same_hash.tolist(), ids_of(table, same_hash), strict=True):
        if found == external_id:
            return int(row)
    return None
