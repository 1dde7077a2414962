"""The latest results of a method, kept without keeping its object alive."""

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, TypeVar
from weakref import WeakMethod

P = ParamSpec("P")
T = TypeVar("T")


def remembering(method: Callable[P, T], size: int) -> Callable[P, T]:
    """A bound method that remembers its results for the last ``size`` arguments, which must be hashable.

    For an attribute of the method's own object: ``functools.lru_cache`` alone would hold the object in a cycle, and
    what a version of a model leaves in cycles is freed long after its last request, or never.
    """
    weak = WeakMethod(method)

    def call(*arguments: P.args, **named: P.kwargs) -> T:
        bound = weak()
        assert bound is not None  # who calls holds the object
        return bound(*arguments, **named)

    return lru_cache(size)(call)  # type: ignore[return-value]  # hashable arguments are the caller's promise
