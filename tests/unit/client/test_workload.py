"""What calls ask."""

import itertools
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from shortlist.v1 import recommender_pb2
from shortlist_client.loadtest.workload import MOST_DRAWN, Kind, Workload, bounds, endless_calls, parse_mix


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
    calls = list(itertools.islice(endless_calls(workload, random.Random(6), most=3_000), 3_000))
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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("mix", "size"), [("unary=95,batch=5", 1_000), ("unary=1,batch=99", 1_000), ("unary=999,similar=1", 1)]
)
def test_shares_hold_in_the_long_run_whatever_the_size_of_batches(mix: str, size: int, seed: int) -> None:
    workload = Workload(parse_mix(mix), ["u1", "u2"], ["i1"], k=1, batch_size=size)
    calls = itertools.islice(endless_calls(workload, random.Random(seed), most=10_000), 40_000)
    kinds = Counter(call.kind for call in calls)
    for kind, share in workload.mix.items():
        assert kinds[kind] == pytest.approx(40_000 * share, abs=4 * (40_000 * share * (1 - share)) ** 0.5)


def test_calls_of_a_mix_may_be_taken_by_several_threads() -> None:
    calls = endless_calls(Workload(parse_mix("unary=1,similar=1"), ["u1"], ["i1"]), random.Random(0), most=100)
    with ThreadPoolExecutor(4) as threads:
        taken = threads.map(lambda _: [next(calls).kind for _ in range(5_000)], range(4))
        assert sum(map(len, taken)) == 20_000


def test_users_who_cannot_come_up_are_counted() -> None:
    users = [str(number) for number in range(2 * MOST_DRAWN + 1)]
    unary = Workload(parse_mix("unary"), users, skew=0.0)
    assert bounds(unary, 1)["distinct users"].startswith("20,000 of 40,001 at most")
    assert bounds(unary, 2)["distinct users"].startswith("40,000 of 40,001 at most")
    assert bounds(unary, 3) == {}
    asked = {call.asked for call in itertools.islice(endless_calls(unary, random.Random(1)), 3 * MOST_DRAWN)}
    assert MOST_DRAWN / 2 < len(asked) <= MOST_DRAWN
    large = Workload(parse_mix("batch,similar"), users, users, batch_size=1_000)
    assert bounds(large, 1) == {"distinct items": bounds(unary, 1)["distinct users"]}
