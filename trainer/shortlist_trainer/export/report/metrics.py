"""What each metric says, which way is better, and how a model compares with its baselines."""

import math
from dataclasses import dataclass
from typing import Literal

from shortlist_trainer.evaluation.protocols import EvaluationResult

Better = Literal["higher", "lower"]

_MEANINGS: dict[str, tuple[str, Better | None]] = {
    "rmse": ("root of the mean squared error of predicted ratings; large errors weigh more", "lower"),
    "mae": ("mean absolute error of predicted ratings: by how much a prediction is off", "lower"),
    "recall": ("share of a user's held-out items among the first {k}", "higher"),
    "ndcg": ("held-out items among the first {k}, early places counting more; 1 is a perfect order", "higher"),
    "hr": ("share of users with a held-out item among the first {k}", "higher"),
    "mrr": ("1 / the place of a user's first held-out item, 0 where none is among the first {k}", "higher"),
    "map": ("precision at the place of each held-out item among the first {k}, averaged", "higher"),
    "coverage": ("share of the catalogue that is among some user's first {k}", None),
    "novelty": ("surprise of the first {k} in bits: how few users know them", None),
    "popularity": ("mean interactions of the first {k}: how far they lean to the popular", None),
}
_HEADLINES = ("ndcg@10", "hr@10", "recall@10", "rmse", "mae")
_ACRONYMS = {"rmse", "mae", "ndcg", "hr", "mrr", "map"}


@dataclass(frozen=True)
class Meaning:
    """A metric in words.

    Attributes:
        text: what it says.
        better: which way is better; None where that is a matter of taste.
    """

    text: str
    better: Better | None


def meaning_of(metric: str) -> Meaning:
    """What a metric such as "recall@10" says; an unknown one says nothing."""
    base, _, k = metric.partition("@")
    text, better = _MEANINGS.get(base.removeprefix("full_"), ("", None))
    suffix = ", every item ranked" if base.startswith("full_") else ""
    return Meaning(text.format(k=k) + suffix, better)


def display_name(metric: str) -> str:
    """A metric as a reader writes it: "NDCG@10", "Recall@10"."""
    base, at, k = metric.partition("@")
    full, base = ("full ", base[5:]) if base.startswith("full_") else ("", base)
    return full + (base.upper() if base in _ACRONYMS else base.capitalize()) + at + k


def best_of(metric: str, rows: dict[str, dict[str, float]]) -> str | None:
    """Which of several rows of metrics is the best in one; None where no way is better."""
    better = meaning_of(metric).better
    there = {name: row[metric] for name, row in rows.items() if math.isfinite(row.get(metric, math.nan))}
    if better is None or not there:
        return None
    return (min if better == "lower" else max)(there, key=lambda name: there[name])


def headlines(result: EvaluationResult) -> list[str]:
    """The metrics that a reader asks for first, the first first; every metric where none of these is there."""
    return [metric for metric in _HEADLINES if metric in result.metrics] or list(result.metrics)


@dataclass(frozen=True)
class Comparison:
    """How a model stands beside the baseline to beat in a metric.

    Attributes:
        baseline: the name of the strongest baseline.
        value: what it reaches.
        relation: the model's relation to it in words, such as "2.0 times as high as" or "11% lower than".
    """

    baseline: str
    value: float
    relation: str


def compare(result: EvaluationResult, metric: str) -> Comparison | None:
    """The model beside its strongest baseline in a metric; None where no baseline has it or no way is better."""
    name = best_of(metric, result.baselines)
    if name is None:
        return None
    own, theirs = result.metrics[metric], result.baselines[name][metric]
    lower = meaning_of(metric).better == "lower"
    if not (own < theirs if lower else own > theirs):  # a NaN is no better either
        relation = "no better than"
    elif lower:
        relation = f"{1 - own / theirs:.0%} lower than"
    elif theirs <= 0:
        relation = "higher than"
    else:
        relation = (
            f"{own / theirs:.1f} times as high as" if own >= 1.1 * theirs else f"{own / theirs - 1:.1%} higher than"
        )
    return Comparison(name, theirs, relation)


def figure(value: float, largest: float | None = None) -> str:
    """A metric with as many decimals as the largest figure beside it calls for."""
    return f"{value:,.1f}" if abs(value if largest is None else largest) >= 100 else f"{value:.4f}"
