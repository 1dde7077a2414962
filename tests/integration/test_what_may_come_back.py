"""Filters, limits, paging and histories of a real server, against plain arithmetic over every item."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
import pytest

from shortlist.v1 import common_pb2, recommender_pb2, recommender_pb2_grpc
from shortlist_server.model.folder import load_model
from shortlist_server.retrieval.recommend import Recommender
from shortlist_trainer.models import parse_settings
from shortlist_trainer.models.fit import fit
from shortlist_trainer.models.ncf import NeuralCF
from tests.running import serving
from tests.small_world import checkerboard, publish_embeddings, training_run

AttributeValue = common_pb2.AttributeValue
BatchRecommendRequest = recommender_pb2.BatchRecommendRequest
Condition = recommender_pb2.Condition
Diversity = recommender_pb2.Diversity
Filter = recommender_pb2.Filter
History = recommender_pb2.History
HistoryItem = recommender_pb2.HistoryItem
RecommendRequest = recommender_pb2.RecommendRequest
SimilarItemsRequest = recommender_pb2.SimilarItemsRequest
StreamRecommendRequest = recommender_pb2.StreamRecommendRequest
Stub = recommender_pb2_grpc.RecommenderServiceStub

USER = "u3"

UNTELLABLE = (2**53 + 1, 2**63 - 1, -(2**63))
"""Whole numbers that numbers with fractions cannot tell from their neighbours."""


@pytest.fixture(scope="module")
def recommender(small_models: Path) -> Recommender:
    return load_model(small_models / "1", "cpu").recommender


@pytest.fixture(scope="module")
def scores(recommender: Recommender) -> npt.NDArray[np.float32]:
    """(200,) the user's score of every item, those it has seen at minus infinity."""
    scores = recommender.score(USER, [f"i{item}" for item in range(200)])
    for item_id in recommender.item_ids.ids(recommender.seen.of(recommender.user_ids.row(USER))):
        scores[int(item_id[1:])] = -np.inf
    return scores


def ids(response: recommender_pb2.RecommendResponse | recommender_pb2.SimilarItemsResponse) -> list[str]:
    return [item.item_id for item in response.items]


def best(scores: npt.NDArray[np.float32], k: int, allowed: Callable[[int], bool] = lambda item: True) -> list[str]:
    order = np.argsort(-scores).tolist()
    return [f"i{item}" for item in order if allowed(item) and scores[item] > -np.inf][:k]


def texts(*values: str) -> list[common_pb2.AttributeValue]:
    return [AttributeValue(string_value=value) for value in values]


# What tests/small_world.py gives item number n.
FILTERS: list[tuple[recommender_pb2.Filter, Callable[[int], bool]]] = [
    (Filter(must=[Condition(attribute="genres", any_of=texts("Crime"))]), lambda n: n % 2 == 0),
    (Filter(must=[Condition(attribute="genres", any_of=texts("Drama", "Crime"))]), lambda n: True),
    (Filter(must_not=[Condition(attribute="genres", any_of=texts("Comedy"))]), lambda n: n % 2 == 1),
    (
        Filter(
            must=[Condition(attribute="classic", any_of=[AttributeValue(bool_value=True)])],
            must_not=[Condition(attribute="genres", any_of=texts("Drama"))],
        ),
        lambda n: n % 6 == 0,
    ),
    (
        Filter(must=[Condition(attribute="year", any_of=[AttributeValue(int_value=year) for year in (1995, 2017)])]),
        lambda n: n in (5, 27),
    ),
    (
        Filter(
            must=[Condition(attribute="price", any_of=[AttributeValue(int_value=4), AttributeValue(double_value=9.5)])]
        ),
        lambda n: n in (8, 19),
    ),
    (Filter(must=[Condition(attribute="title", any_of=texts("Title of i77"))]), lambda n: n == 77),
    (Filter(must=[Condition(attribute="title", any_of=texts("no such title"))]), lambda n: False),
    (
        Filter(must=[Condition(attribute="price", any_of=[AttributeValue(int_value=n) for n in (7, *UNTELLABLE)])]),
        lambda n: n == 14,
    ),
    (
        Filter(must_not=[Condition(attribute="price", any_of=[AttributeValue(int_value=n) for n in UNTELLABLE])]),
        lambda n: True,
    ),
    (Filter(), lambda n: True),
]


@pytest.mark.parametrize(("wanted", "allowed"), FILTERS)
def test_a_filter_lets_the_best_of_what_it_allows_pass(
    stub: Stub, scores: npt.NDArray[np.float32], wanted: recommender_pb2.Filter, allowed: Callable[[int], bool]
) -> None:
    for k in (3, 150):
        answer = stub.Recommend(RecommendRequest(user_id=USER, k=k, filter=wanted))
        assert ids(answer) == best(scores, k, allowed)
        complete = len(answer.items) == k
        assert answer.shortfall_reason == (0 if complete else recommender_pb2.SHORTFALL_REASON_FILTER)
    similar = stub.SimilarItems(SimilarItemsRequest(item_ids=["i4"], k=150, filter=wanted))
    assert set(ids(similar)) <= {f"i{item}" for item in range(200) if allowed(item) and item != 4}
    assert len(similar.items) == min(150, sum(allowed(item) for item in range(200) if item != 4))
    popular = stub.Recommend(
        RecommendRequest(user_id="nobody", k=150, filter=wanted, fallback=recommender_pb2.FALLBACK_POPULAR)
    )
    assert len(popular.items) == min(150, sum(allowed(item) for item in range(200)))
    assert all(allowed(int(item[1:])) for item in ids(popular))


def test_items_that_score_too_little_are_left_out(stub: Stub, scores: npt.NDArray[np.float32]) -> None:
    least = float(np.sort(scores)[-20]) - 1e-3
    answer = stub.Recommend(RecommendRequest(user_id=USER, k=50, min_score=least))
    assert ids(answer) == best(scores, 20)
    assert answer.shortfall_reason == recommender_pb2.SHORTFALL_REASON_MIN_SCORE
    assert ids(stub.Recommend(RecommendRequest(user_id=USER, k=5, min_score=least))) == best(scores, 5)


def test_pages_fit_together(stub: Stub, scores: npt.NDArray[np.float32]) -> None:
    pages = [ids(stub.Recommend(RecommendRequest(user_id=USER, k=30, offset=offset))) for offset in range(0, 200, 30)]
    assert [item for page in pages for item in page] == best(scores, 200)
    beyond = stub.Recommend(RecommendRequest(user_id=USER, k=10, offset=199))
    assert ids(beyond) == []
    assert beyond.shortfall_reason == recommender_pb2.SHORTFALL_REASON_CATALOGUE_EXHAUSTED


@pytest.mark.parametrize("at_most", [1, 3, 40])
def test_no_value_comes_more_often_than_the_diversity_limit(
    stub: Stub, scores: npt.NDArray[np.float32], at_most: int
) -> None:
    answer = stub.Recommend(
        RecommendRequest(user_id=USER, k=60, diversity=Diversity(attribute="genres", max_per_value=at_most))
    )
    counts: Counter[bool] = Counter()
    greedy = []
    for item in best(scores, 200):
        is_drama = int(item[1:]) % 2 == 1
        if counts[is_drama] < at_most:
            counts[is_drama] += 1
            greedy.append(item)
    assert ids(answer) == greedy[:60]
    reason = recommender_pb2.SHORTFALL_REASON_DIVERSITY if len(greedy) < 60 else 0
    assert answer.shortfall_reason == reason


def test_limits_combine(stub: Stub, scores: npt.NDArray[np.float32]) -> None:
    """Only one item of each year, of a filter's half, after the first five: what is deep in the ranking is found."""
    answer = stub.Recommend(
        RecommendRequest(
            user_id=USER,
            k=10,
            offset=5,
            filter=FILTERS[0][0],
            exclude_item_ids=best(scores, 7),
            diversity=Diversity(attribute="classic", max_per_value=8),
        )
    )
    counts: Counter[bool] = Counter()
    greedy = []
    for item in best(scores, 200, FILTERS[0][1]):
        if item not in best(scores, 7) and counts[int(item[1:]) % 3 == 0] < 8:
            counts[int(item[1:]) % 3 == 0] += 1
            greedy.append(item)
    assert ids(answer) == greedy[5:15]


def test_a_history_is_answered_as_by_its_own_vector_without_its_items(stub: Stub, recommender: Recommender) -> None:
    history = History(items=[HistoryItem(item_id=item) for item in ("i9", "i9", "no such item", "i40", "i7")])
    answer = stub.Recommend(RecommendRequest(history=history, k=20))
    assert answer.source == recommender_pb2.SOURCE_FOLDED_IN
    assert answer.unknown_history_items == 1
    rows = recommender.item_ids.rows([f"i{item}" for item in range(200)])
    vector, bias = recommender.fold_in.vector(rows[[9, 40, 7]], None)
    by_hand = recommender.items.vectors(rows) @ vector + np.float32(bias + recommender.score_constant)
    expected = by_hand.copy()
    expected[[9, 40, 7]] = -np.inf
    assert ids(answer) == best(expected, 20)
    np.testing.assert_allclose(
        [item.score for item in answer.items], [by_hand[int(item[1:])] for item in ids(answer)], rtol=1e-4
    )
    with_them = stub.Recommend(RecommendRequest(history=history, k=200, exclude_seen=False))
    assert len(with_them.items) == 200


def test_of_a_history_nobody_knows_there_is_a_fallback_or_an_error(stub: Stub) -> None:
    history = History(items=[HistoryItem(item_id="x"), HistoryItem(item_id="y")])
    with pytest.raises(grpc.RpcError) as caught:
        stub.Recommend(RecommendRequest(history=history))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    answer = stub.Recommend(RecommendRequest(history=history, fallback=recommender_pb2.FALLBACK_POPULAR))
    assert (answer.source, answer.unknown_history_items) == (recommender_pb2.SOURCE_POPULAR, 2)


MIXED = [
    RecommendRequest(user_id="u1", k=5),
    RecommendRequest(user_id="nobody"),
    RecommendRequest(user_id="u2", k=0),
    RecommendRequest(user_id="u2", filter=FILTERS[3][0], attributes=["title"]),
    RecommendRequest(history=History(items=[HistoryItem(item_id="i3", weight=4.5)]), k=7),
    RecommendRequest(user_id="u2", model=common_pb2.ModelSelector(version=9)),
    RecommendRequest(user_id="nobody", fallback=recommender_pb2.FALLBACK_CLUSTER),
]


def described(response: recommender_pb2.RecommendResponse) -> list[str]:
    """Everything in an answer that does not change with what is answered beside it."""
    items = [f"{item.item_id} {item.score:.4f} {sorted(item.attributes.items())}" for item in response.items]
    return [*items, f"{response.source} {response.shortfall_reason} {response.unknown_history_items}"]


def outcome_alone(stub: Stub, request: recommender_pb2.RecommendRequest) -> tuple[int, list[str]]:
    try:
        return 0, described(stub.Recommend(request))
    except grpc.RpcError as error:
        return error.code().value[0], [error.details() or ""]


def outcome(entry: recommender_pb2.RecommendOutcome) -> tuple[int, list[str]]:
    if entry.WhichOneof("outcome") == "error":
        return entry.error.code, [entry.error.message]
    return 0, described(entry.response)


def test_a_batch_answers_each_entry_as_alone_and_a_bad_one_fails_alone(stub: Stub) -> None:
    answer = stub.BatchRecommend(BatchRecommendRequest(requests=MIXED))
    alone = [outcome_alone(stub, request) for request in MIXED]
    assert [outcome(entry) for entry in answer.outcomes] == alone
    assert [code for code, _ in alone] == [0, 5, 3, 0, 0, 5, 0]
    assert answer.outcomes[1].error.details[0].TypeName() == "google.rpc.ResourceInfo"


@pytest.mark.parametrize("count", [0, 1_001])
def test_a_batch_of_none_or_too_many_is_refused(stub: Stub, count: int) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.BatchRecommend(BatchRecommendRequest(requests=[MIXED[0]] * count))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_batch_asks_for_so_many_items_in_all(stub: Stub) -> None:
    """An entry whose own k is wrong asks for none."""
    wrong = [RecommendRequest(user_id="u1", k=k) for k in (-1_000, 0, 1_001)]
    most = [RecommendRequest(user_id="nobody", k=1_000)] * 99 + [RecommendRequest(user_id="nobody")] * 100
    assert len(stub.BatchRecommend(BatchRecommendRequest(requests=[*most, *wrong])).outcomes) == 202
    with pytest.raises(grpc.RpcError) as caught:
        stub.BatchRecommend(BatchRecommendRequest(requests=[*most, *wrong, RecommendRequest(user_id="u1", k=1)]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "requests: may ask for 100,000 items in all, not 100,001"


def test_a_stream_answers_each_request_by_its_id(stub: Stub) -> None:
    requests = [
        StreamRecommendRequest(request_id=f"{turn}-{place}", request=request)
        for turn in range(60)
        for place, request in enumerate(MIXED)
    ]
    answers = {answer.request_id: outcome(answer.outcome) for answer in stub.StreamRecommend(iter(requests))}
    alone = [outcome_alone(stub, request) for request in MIXED]
    assert answers == {f"{turn}-{place}": alone[place] for turn in range(60) for place in range(len(MIXED))}


def test_a_stream_is_answered_while_it_is_open(stub: Stub) -> None:
    """One request at a time, each waiting for the answer to the one before."""
    turn = threading.Semaphore(1)

    def requests() -> Iterator[recommender_pb2.StreamRecommendRequest]:
        for place in range(5):
            assert turn.acquire(timeout=10)
            yield StreamRecommendRequest(request_id=str(place), request=MIXED[0])

    for place, answer in enumerate(stub.StreamRecommend(requests(), timeout=20)):
        assert answer.request_id == str(place)
        turn.release()


def test_a_cancelled_stream_leaves_the_server_answering(stub: Stub) -> None:
    def forever() -> Iterator[recommender_pb2.StreamRecommendRequest]:
        while True:
            yield StreamRecommendRequest(request=MIXED[0])

    call = stub.StreamRecommend(forever(), timeout=20)
    next(call)
    call.cancel()
    assert len(stub.Recommend(MIXED[0], timeout=5).items) == 5


def test_reranking_is_by_the_networks_own_scores(tmp_path: Path, lane: str) -> None:
    dataset = checkerboard()
    settings = ["embedding_size=4", "mlp_embedding_size=4", "hidden_layers=8", "epochs=2", "batch_size=64"]
    model = fit(NeuralCF, parse_settings(NeuralCF.config_type, settings), dataset.interactions, training_run()).model
    publish_embeddings(tmp_path, dataset, model.embeddings(), ranker=model.ranker())
    user = 7
    everything = model.predict(np.full(30, user), np.arange(30))
    everything[dataset.interactions.items[dataset.interactions.users == user]] = -np.inf
    expected = [dataset.item_ids[row] for row in np.argsort(-everything) if everything[row] > -np.inf]
    with serving(tmp_path, lane) as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        answer = stub.Recommend(RecommendRequest(user_id=dataset.user_ids[user], k=5, rerank=True))
        assert ids(answer) == expected[:5]
        np.testing.assert_allclose([item.score for item in answer.items], np.sort(everything)[::-1][:5], atol=1e-4)
        page = stub.Recommend(RecommendRequest(user_id=dataset.user_ids[user], k=5, offset=2, rerank=True))
        assert ids(page) == expected[2:7]
