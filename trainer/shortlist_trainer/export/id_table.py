"""External ids as arrays that a server can memory-map and search.

The layout is described in docs/model-format.md; the reader is in the server.
"""

import hashlib

import numpy as np
import numpy.typing as npt

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
