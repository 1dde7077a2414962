"""The options that benchmarks share which ask a published model for one user's recommendations."""

import argparse
from pathlib import Path

from shortlist.v1.recommender_pb2 import RecommendRequest


def parser_for(documentation: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser of ``--models-dir``, ``--user`` and ``--rounds``, to which a benchmark adds its own.

    Args:
        documentation: of the benchmark's module.
        rounds: how many there are unless it is told.
    """
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models-dir", type=Path, default=Path("models"))
    parser.add_argument("--user", default="196")
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def request_of(options: argparse.Namespace) -> RecommendRequest:
    """What is asked for: ten items for the user."""
    return RecommendRequest(user_id=options.user, k=10)
