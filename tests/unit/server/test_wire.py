"""Answers written by hand read as protobuf's own."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shortlist.v1 import common_pb2, recommender_pb2
from shortlist_server.service import wire

ids = st.text(max_size=40) | st.integers(50, 700).map(lambda length: "é" * length)
scores = st.floats(width=32, allow_nan=False)
attributes = st.dictionaries(st.text(max_size=5), st.text(max_size=200), max_size=3)


@given(item_id=ids, score=scores, texts=attributes)
def test_an_item_reads_as_it_was_written(item_id: str, score: float, texts: dict[str, str]) -> None:
    values = {name: common_pb2.AttributeValue(string_value=text) for name, text in texts.items()}
    expected = recommender_pb2.ScoredItem(item_id=item_id, score=score, attributes=values)
    more = recommender_pb2.ScoredItem(attributes=values).SerializeToString()
    written = wire.scored_item(1, item_id.encode(), score, more)
    response = recommender_pb2.RecommendResponse.FromString(written)
    assert response == recommender_pb2.RecommendResponse(items=[expected])


@given(items=st.lists(st.tuples(st.text(max_size=5) | st.text("é", max_size=wire.LONGEST_ID // 2), scores), max_size=5))
def test_items_written_together_read_as_one_by_one(items: list[tuple[str, float]]) -> None:
    encoded = [item_id.encode() for item_id, _ in items]
    padded = np.array([[*one.ljust(wire.LONGEST_ID, b"?")] for one in encoded], dtype=np.uint8)
    padded = padded.reshape(len(items), wire.LONGEST_ID)
    lengths = np.array([len(one) for one in encoded], dtype=np.int64)
    written, sizes = wire.scored_items(1, padded, lengths, np.array([score for _, score in items], dtype=np.float32))
    expected = [recommender_pb2.ScoredItem(item_id=item_id, score=score) for item_id, score in items]
    assert recommender_pb2.RecommendResponse.FromString(written) == recommender_pb2.RecommendResponse(items=expected)
    bounds = pairwise([0, *np.cumsum(sizes).tolist()])
    each = [recommender_pb2.RecommendResponse.FromString(written[begin:end]).items[0] for begin, end in bounds]
    assert each == expected


@given(number=st.integers(1, 15), length=st.sampled_from([0, 1, 127, 128, 16_383, 16_384, 3_000_000]))
def test_fields_of_every_length_are_told_apart(number: int, length: int) -> None:
    field = wire.field(number, b"x" * length)
    assert field[0] == number << 3 | 2
    assert recommender_pb2.StreamRecommendResponse.FromString(wire.field(1, b"x" * length)).request_id == "x" * length
