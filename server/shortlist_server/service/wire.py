"""Answers in protobuf's wire format, written without a message object for every item.

An answer is mostly its items, and making ten small messages takes longer than finding the ten items. Everything else of
an answer is left to protobuf: in the wire format, the fields of a message may stand in any order, and a message may be
written in parts. https://protobuf.dev/programming-guides/encoding/ describes it.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

_LENGTH_DELIMITED = 2
_SCORE = 2 << 3 | 5
"""The tag of ScoredItem's field 2, 32 bits."""


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


def scored_items(
    number: int, item_ids: Sequence[bytes], scores: npt.NDArray[np.float32], attributes: Sequence[bytes] | None = None
) -> list[bytes]:
    """(n,) entries of a repeated field of ScoredItem.

    Args:
        number: of the field, at most 15.
        item_ids: (n,) in UTF-8.
        scores: (n,) float32.
        attributes: (n,) the written attributes of each item; None for none.
    """
    score_fields = np.empty((len(scores), 5), dtype=np.uint8)
    score_fields[:, 0] = _SCORE
    score_fields[:, 1:] = scores.astype("<f4", copy=False).view(np.uint8).reshape(-1, 4)
    written: list[bytes] = score_fields.view("V5")[:, 0].tolist()
    if attributes is None:
        return [
            _item_head(number, len(item_id)) + item_id + score for item_id, score in zip(item_ids, written, strict=True)
        ]
    items = zip(item_ids, written, attributes, strict=True)
    return [field(number, field(1, item_id) + score + more) for item_id, score, more in items]


@cache
def _item_head(number: int, id_length: int) -> bytes:
    """What comes before the id of an item without attributes."""
    id_head = _head(1, id_length)
    return _head(number, len(id_head) + id_length + 5) + id_head


@lru_cache(1 << 12)
def _head(number: int, length: int) -> bytes:
    tag = number << 3 | _LENGTH_DELIMITED
    varint = bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes((tag, *varint, length))
