"""Answers in protobuf's wire format, written without a message object for every item.

An answer is mostly its items, and making ten small messages takes longer than finding the ten items. Everything else of
an answer is left to protobuf: in the wire format, the fields of a message may stand in any order, and a message may be
written in parts. https://protobuf.dev/programming-guides/encoding/ describes it.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

_LENGTH_DELIMITED = 2
_SCORE = bytes([2 << 3 | 5])
"""The tag of ScoredItem's field 2, 32 bits."""

_SCORE_BYTES = 4


def serialized(message: Any) -> bytes:
    """A message that may be written already."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field: a message, a text or bytes.

    Args:
        number: of the field, at most 15.
        content: what it holds.
    """
    return _head(number, len(content)) + content


@lru_cache(1 << 12)
def nested_head(outer: int, inner: int, length: int) -> bytes:
    """What comes before so many bytes of a field that is all there is of a message, itself a field; see ``field``."""
    inner_head = _head(inner, length)
    return _head(outer, len(inner_head) + length) + inner_head


def scored_items(heads: Sequence[bytes], scores: npt.NDArray[np.float32]) -> list[bytes]:
    """(2 n,) the parts of n entries of a repeated field of ScoredItem, two of each.

    Args:
        heads: (n,) as ``item_head`` writes them.
        scores: (n,) float32.
    """
    parts = [b""] * (2 * len(heads))
    parts[::2] = heads
    parts[1::2] = scores.astype("<f4", copy=False).view("V4").tolist()
    return parts


def item_head(number: int, item_id: bytes, attributes: bytes = b"") -> bytes:
    """An entry of a repeated field of ScoredItem but for its last four bytes, which are its score.

    Args:
        number: of the field, at most 15.
        item_id: in UTF-8.
        attributes: as protobuf writes those of a ScoredItem.
    """
    head = field(1, item_id) + attributes + _SCORE
    return _head(number, len(head) + _SCORE_BYTES) + head


@lru_cache(1 << 12)
def _head(number: int, length: int) -> bytes:
    tag = number << 3 | _LENGTH_DELIMITED
    varint = bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes((tag, *varint, length))
