"""What the client's arguments become, and what it refuses without asking a server."""

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from shortlist_client import UnexpectedStatus, UserNotFound, recommend_request
from shortlist_client.errors import error_of_status
from shortlist_client.rpcs import BATCH_RECOMMEND


@pytest.mark.parametrize("given", [{}, {"user_id": "u", "history": ["i"]}, {"user_id": "", "history": []}])
def test_exactly_one_of_user_and_history_is_given(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give user_id or history, and not both"):
        recommend_request(**given)


def test_what_is_not_given_is_not_set() -> None:
    request = recommend_request("u")
    for field in ("history", "filter", "min_score", "diversity", "search_effort", "model"):
        assert not request.HasField(field)


def test_only_a_mapping_sets_weights() -> None:
    assert not any(item.HasField("weight") for item in recommend_request(history=["a", "b"]).history.items)
    items = recommend_request(history={"a": 0.0, "b": 2}).history.items
    assert [(item.item_id, item.HasField("weight"), item.weight) for item in items] == [("a", True, 0), ("b", True, 2)]


def test_a_value_is_of_its_own_type_and_several_are_any_of() -> None:
    wanted = recommend_request("u", must={"a": True, "b": [1, 1.5, "1"]}, must_not={"c": "no"}).filter
    kinds = [[value.WhichOneof("kind") for value in condition.any_of] for condition in wanted.must]
    assert kinds == [["bool_value"], ["int_value", "double_value", "string_value"]]
    assert [condition.attribute for condition in (*wanted.must, *wanted.must_not)] == ["a", "b", "c"]
    with pytest.raises(TypeError, match="is a str, int, float or bool, not None"):
        recommend_request("u", must={"a": [None]})  # type: ignore[list-item]


def test_one_string_is_not_taken_for_several() -> None:
    for ask in (lambda: recommend_request(history="abc"), lambda: BATCH_RECOMMEND.request("abc")):
        with pytest.raises(TypeError, match="takes several strings"):
            ask()


def test_a_status_alone_is_the_typed_error() -> None:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ResourceInfo(resource_type="user", resource_name="x"))
    error = error_of_status(status_pb2.Status(code=5, message="no x", details=[detail]))
    assert isinstance(error, UserNotFound)
    assert (str(error), error.code, error.resource_name) == ("no x", grpc.StatusCode.NOT_FOUND, "x")
    assert isinstance(error_of_status(status_pb2.Status(code=999)), UnexpectedStatus)
