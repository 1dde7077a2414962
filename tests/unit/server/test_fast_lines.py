"""Whose turn it is on the fast lane, and for how much."""

import math
from typing import Any

import pytest

from shortlist_server.service.fast_calls import Call, Method
from shortlist_server.service.fast_lines import Lines

ROOM = 64


def call(name: str, *weights: int) -> Call:
    """A call whose requests weigh so much each."""
    method = Method(request=None, answer=lambda messages, _: messages, weight=lambda weight: weight)
    one = Call(name, method, core=None, deadline=math.inf, metadata=())
    one.entries = weights
    one.followed = True
    return one


def taken(lines: Lines) -> dict[str, list[int]]:
    """What the next turn has, by the name of the call; those with more to do go on."""
    turn: dict[str, list[int]] = {}
    back: list[Call] = []
    for one, requests in lines.next(ROOM):
        assert isinstance(one, Call)
        turn[one.path] = [request for request, _ in requests]
        one.outcomes.extend(b"" for _ in requests)
        if len(one.outcomes) < len(one.entries):
            back.append(one)
    for one in reversed(back):
        lines.put_back(one)
    return turn


def test_batches_have_what_single_requests_leave_and_half_at_least() -> None:
    lines = Lines(gone=lambda _: None)
    for number in range(100):
        lines.add(call(f"single {number}", 1))
    lines.add(call("batch", *[1] * 100))
    first = taken(lines)
    assert (len(first), first["batch"]) == (32 + 1, [1] * 32)
    second, third = taken(lines), taken(lines)
    assert (len(second), second["batch"]) == (32 + 1, [1] * 32)
    assert (len(third), third["batch"]) == (32 + 1, [1] * 32)
    assert taken(lines) == {**{f"single {number}": [1] for number in range(96, 100)}, "batch": [1] * 4}
    assert not lines


@pytest.mark.parametrize("heavy", [33, 90, 1_000])
def test_heavy_single_requests_take_no_turn_of_batches(heavy: int) -> None:
    lines = Lines(gone=lambda _: None)
    for number in range(3):
        lines.add(call(f"single {number}", heavy))
    lines.add(call("batch", *[1] * 200))
    assert taken(lines) == {"single 0": [heavy], "batch": [1] * 32}
    assert taken(lines) == {"single 1": [heavy], "batch": [1] * 32}


def test_a_turn_has_one_request_at_least_of_a_batch_and_few_where_they_are_heavy() -> None:
    lines = Lines(gone=lambda _: None)
    lines.add(call("batch", 150, 150, 30, 30, 30, 1))
    turns: list[Any] = []
    while lines:
        turns.append(taken(lines)["batch"])
    assert turns == [[150], [150], [30, 30, 30], [1]]


def test_of_calls_whose_callers_have_gone_is_told_and_they_have_no_turn() -> None:
    gone: list[Call] = []
    lines = Lines(gone.append)
    left, stays = call("left", 1), call("stays", 1)
    left.gone = True
    lines.add(left)
    lines.add(stays)
    assert taken(lines) == {"stays": [1]}
    assert gone == [left]
