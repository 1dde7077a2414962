"""What the client exports, and that both clients offer the same."""

import inspect

import shortlist_client
from shortlist_client import AsyncClient, Client

METHODS = [
    "batch_recommend",
    "get_cluster",
    "get_model",
    "list_clusters",
    "list_models",
    "load_model",
    "recommend",
    "score",
    "server_status",
    "set_label",
    "similar_items",
    "unload_model",
]


def test_everything_that_is_exported_exists_and_every_error_is_exported() -> None:
    for name in shortlist_client.__all__:
        assert hasattr(shortlist_client, name)
    errors = {
        name
        for name, kind in inspect.getmembers(shortlist_client.errors, inspect.isclass)
        if issubclass(kind, shortlist_client.ShortlistError) and not name.startswith("_")
    }
    assert errors <= set(shortlist_client.__all__)


def test_both_clients_offer_the_same_calls_with_the_same_arguments_and_words() -> None:
    for name in METHODS:
        blocking, awaitable = getattr(Client, name), getattr(AsyncClient, name)
        assert inspect.signature(blocking) == inspect.signature(awaitable)
        assert blocking.__doc__ == awaitable.__doc__
        assert "Returns:" in blocking.__doc__
    assert inspect.signature(Client) == inspect.signature(AsyncClient)


def test_every_call_of_the_client_is_in_this_list() -> None:
    for kind in (Client, AsyncClient):
        public = [name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")]
        assert sorted(set(public) - {"with_timeout", "close", "stream_recommend"}) == METHODS
