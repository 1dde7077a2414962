"""How long requests take, one against another."""

import pytest

from shortlist.v1.recommender_pb2 import Diversity, RecommendRequest, SimilarItemsRequest
from shortlist_server.service.weights import first_of, plain, weight


@pytest.mark.parametrize(
    ("request_", "least", "most"),
    [
        (RecommendRequest(user_id="u1"), 1, 1),
        (RecommendRequest(user_id="u1", k=100), 1, 2),
        (RecommendRequest(user_id="u1", k=1_000), 5, 10),
        (RecommendRequest(user_id="u1", k=1_000, attributes=["title", "year", "genres", "price"]), 100, 200),
        (RecommendRequest(user_id="u1", k=1_000, diversity=Diversity(attribute="genres", max_per_value=3)), 20, 50),
        (RecommendRequest(user_id="u1", k=400, rerank=True), 10, 50),
        (RecommendRequest(user_id="u1", k=-5), 1, 1),
        (RecommendRequest(user_id="u1", k=2**31 - 1), 5, 10),
        (RecommendRequest(user_id="u1", exclude_item_ids=["i" * 8] * 10_000), 100, 500),
        (SimilarItemsRequest(item_ids=["i1"]), 1, 1),
        (SimilarItemsRequest(item_ids=["i1"], k=1_000, attributes=["title"]), 30, 60),
    ],
)
def test_a_request_weighs_about_what_it_takes(request_: RecommendRequest, least: int, most: int) -> None:
    assert least <= weight(request_) <= most


def test_as_many_are_taken_as_there_is_room_for_and_one_at_least() -> None:
    assert first_of([1, 2, 3, 4], plain, 3) == ([1, 2, 3], 3)
    assert first_of([50, 1, 1], int, 3) == ([50], 50)
    assert first_of([1, 1, 50, 1], int, 3) == ([1, 1, 50], 52)
    assert first_of([], plain, 3) == ([], 0)
