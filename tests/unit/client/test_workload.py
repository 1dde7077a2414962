"""What calls ask."""

import random
from collections import Counter

import pytest

from shortlist.v1 import recommender_pb2
from shortlist_client.loadtest.workload import Kind, Workload, draw_calls, parse_mix


def test_a_mix_is_read_as_shares() -> None:
    assert parse_mix("unary=80,batch=20") == {Kind.UNARY: 0.8, Kind.BATCH: 0.2}
    assert parse_mix("similar") == {Kind.SIMILAR: 1.0}


@pytest.mark.parametrize("text", ["", "unary=0", "unary=x", "score=5", "unary=1,unary=2", "unary=nan"])
def test_a_mix_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"mix|weight"):
        parse_mix(text)


def test_calls_are_drawn_in_their_shares_and_ask_what_they_say() -> None:
    users, items = [f"u{place}" for place in range(50)], ["i1", "i2"]
    workload = Workload(parse_mix("unary=50,batch=25,similar=25"), users, items, k=7, batch_size=3)
    calls = draw_calls(workload, random.Random(6), most=3_000)
    kinds = Counter(call.kind for call in calls)
    assert kinds[Kind.UNARY] / len(calls) == pytest.approx(0.5, abs=0.05)
    for call in calls[:50]:
        if call.kind is Kind.BATCH:
            batch = recommender_pb2.BatchRecommendRequest.FromString(call.message)
            assert tuple(each.user_id for each in batch.requests) == call.asked
            assert {each.k for each in batch.requests} == {7}
        elif call.kind is Kind.SIMILAR:
            assert recommender_pb2.SimilarItemsRequest.FromString(call.message).item_ids == list(call.asked)
        else:
            assert recommender_pb2.RecommendRequest.FromString(call.message).user_id == call.asked[0]
