"""Answers written by hand read as protobuf's own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shortlist.v1 import common_pb2, recommender_pb2
from shortlist_server.service import wire

ids = st.text(max_size=40) | st.integers(100, 700).map(lambda length: "é" * length)
attributes = st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=200), max_size=3)
items = st.lists(st.tuples(ids, st.floats(width=32, allow_nan=False), attributes), max_size=5)


@given(items=items, named=st.booleans())
def test_items_read_as_they_were_written(items: list[tuple[str, float, dict[str, str] | None]], named: bool) -> None:
    expected = []
    for item_id, score, values in items:
        given = {name: common_pb2.AttributeValue(string_value=text) for name, text in (values or {}).items()}
        expected.append(recommender_pb2.ScoredItem(item_id=item_id, score=score, attributes=given if named else None))
    more = [recommender_pb2.ScoredItem(attributes=item.attributes).SerializeToString() for item in expected]
    heads = [wire.item_head(1, item.item_id.encode(), rest) for item, rest in zip(expected, more, strict=True)]
    written = wire.scored_items(heads, np.array([score for _, score, _ in items], dtype=np.float32))
    response = recommender_pb2.RecommendResponse.FromString(b"".join(written))
    assert response == recommender_pb2.RecommendResponse(items=expected)


@given(number=st.integers(1, 15), length=st.sampled_from([0, 1, 127, 128, 16_383, 16_384, 3_000_000]))
def test_fields_of_every_length_are_told_apart(number: int, length: int) -> None:
    field = wire.field(number, b"x" * length)
    assert field[0] == number << 3 | 2
    assert recommender_pb2.StreamRecommendResponse.FromString(wire.field(1, b"x" * length)).request_id == "x" * length
