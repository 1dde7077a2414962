"""Answers in protobuf's wire format, written without a message object for every item.

An answer is mostly its items, and making ten small messages takes longer than finding the ten items. Everything else of
an answer is left to protobuf: in the wire format, the fields of a message may stand in any order, and a message may be
written in parts. https://protobuf.dev/programming-guides/encoding/ describes it.
"""

from functools import cache, lru_cache
from struct import pack
from typing import Any

import numpy as np
import numpy.typing as npt

_LENGTH_DELIMITED = 2
_ID_TAG = 1 << 3 | _LENGTH_DELIMITED
"""The tag of ScoredItem's field 1."""
_SCORE_TAG = 2 << 3 | 5
"""The tag of ScoredItem's field 2, 32 bits."""
_SCORE_BYTES = 4
_OF_ENTRY = 2
"""Tag and length of an entry."""
_SCORE = slice(_OF_ENTRY + 1, _OF_ENTRY + 1 + _SCORE_BYTES)
_BEFORE_ID = _SCORE.stop + 2

LONGEST_ID = 0x7F - (_BEFORE_ID - _OF_ENTRY)
"""An entry with a longer id does not tell its length by one byte."""

_WRITTEN = np.tri(LONGEST_ID + 1, _BEFORE_ID + LONGEST_ID, _BEFORE_ID - 1, dtype=bool)
"""Which bytes of an entry are written, for every length of the id."""


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


def scored_items(
    number: int, ids: npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]
) -> tuple[bytes, npt.NDArray[np.int64]]:
    """Entries of a repeated field of ScoredItem without attributes, one after the other.

    Args:
        number: of the field, at most 15.
        ids: (n, at most ``LONGEST_ID``) uint8, each in UTF-8, with anything behind it.
        lengths: (n,) how many bytes of each are the id.
        scores: (n,) float32.

    Returns:
        The entries, and (n,) how many bytes each takes.
    """
    entries = np.empty((len(ids), _BEFORE_ID + ids.shape[1]), dtype=np.uint8)
    entries[:, :_BEFORE_ID] = _beginnings(number)[lengths]
    entries[:, _SCORE] = scores.astype("<f4", copy=False).view(np.uint8).reshape(-1, _SCORE_BYTES)
    entries[:, _BEFORE_ID:] = ids
    return entries[_WRITTEN[lengths, : entries.shape[1]]].tobytes(), lengths + _BEFORE_ID


@cache
def _beginnings(number: int) -> npt.NDArray[np.uint8]:
    """What comes before the id in an entry, for every length of the id; the score is still to be filled in."""
    table = np.zeros((LONGEST_ID + 1, _BEFORE_ID), dtype=np.uint8)
    for length, row in enumerate(table):
        # The score comes first, so that it stands at the same place in all.
        row[:] = (
            *(number << 3 | _LENGTH_DELIMITED, length + _BEFORE_ID - _OF_ENTRY),
            *(_SCORE_TAG, *bytes(_SCORE_BYTES), _ID_TAG, length),
        )
    return table


def scored_item(number: int, item_id: bytes, score: float, attributes: bytes) -> bytes:
    """An entry of a repeated field of ScoredItem.

    Args:
        number: of the field, at most 15.
        item_id: in UTF-8.
        score: a float32.
        attributes: as protobuf writes those of a ScoredItem.
    """
    return field(number, b"".join((field(1, item_id), bytes((_SCORE_TAG,)), pack("<f", score), attributes)))


@lru_cache(1 << 12)
def _head(number: int, length: int) -> bytes:
    tag = number << 3 | _LENGTH_DELIMITED
    varint = bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes((tag, *varint, length))
