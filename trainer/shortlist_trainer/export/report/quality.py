"""How good the model is: the head of the page and the table of metrics."""

import math

from shortlist_trainer.evaluation.protocols import EvaluationResult
from shortlist_trainer.export.report.blocks import period_of, section, tile
from shortlist_trainer.export.report.content import ReportContent
from shortlist_trainer.export.report.indexes import recall_tile
from shortlist_trainer.export.report.markup import Markup, tag
from shortlist_trainer.export.report.metrics import best_of, compare, display_name, figure, headlines, meaning_of

_OWN = ""  # the model's own row of metrics, unlike the name of any baseline


def heading(content: ReportContent) -> Markup:
    """The head of the page: a summary in two sentences and the figures that are asked for first."""
    tiles = [_metric_tile(content.evaluation, metric) for metric in headlines(content.evaluation)[:2]]
    tiles.append(recall_tile(content.items))
    vectors = content.embeddings.items.shape
    tiles.append(tile("Items", f"{vectors[0]:,}", f"embeddings of {vectors[1]} columns"))
    return tag(
        "header",
        tag("p", "Shortlist model report", class_="eyebrow"),
        tag("h1", content.model_name, " ", tag("span", f"version {content.version}")),
        tag("p", _summary(content), class_="lead"),
        tag("div", *tiles, class_="tiles"),
    )


def _metric_tile(result: EvaluationResult, metric: str) -> Markup:
    compared = compare(result, metric)
    note = None if compared is None else f"{compared.relation} {compared.baseline}"
    return tile(display_name(metric), figure(result.metrics[metric]), note)


def _summary(content: ReportContent) -> str:
    """What model, what data, when; and how good it is beside the strongest baseline."""
    data, result = content.statistics, content.evaluation
    when = period_of(content)
    made = (
        f"{content.model_name} learned from {data.interactions:,} interactions of {data.users:,} users with "
        f"{data.items:,} items in {content.dataset.name}{f' ({when})' if when else ''}, and was published on "
        f"{content.created.day} {content.created:%B %Y}."
    )
    metrics = headlines(result)
    if not metrics:
        return f"{made} It was not evaluated."
    metric = metrics[0]
    what = "predicts held-out ratings" if meaning_of(metric).better == "lower" else "ranks held-out items"
    text = f"{made} It {what} with {display_name(metric)} {result.metrics[metric]:.3f}"
    compared = compare(result, metric)
    if compared is None:
        return f"{text}."
    name = "recommending the popular" if compared.baseline == "popular" else f"the {compared.baseline}"
    return f"{text}, {compared.relation} {name} ({compared.value:.3f})."


def quality(content: ReportContent) -> Markup:
    """The table of metrics beside the baselines, the best in bold, each with what it says."""
    result = content.evaluation
    if not result.metrics:
        return section("quality", "How good it is", "This version was published without an evaluation.")
    rows = {_OWN: result.metrics, **result.baselines}
    head = tag(
        "tr",
        tag("th", "metric", scope="col"),
        *(tag("th", name or content.model_name, scope="col", class_="number") for name in rows),
        tag("th", "what it says", scope="col"),
    )
    body = []
    for metric in result.metrics:
        best = best_of(metric, rows)
        meaning = meaning_of(metric)
        arrow = {"higher": " ↑", "lower": " ↓", None: ""}[meaning.better]
        cells = [_metric_cell(row.get(metric), rows, metric, is_best=name == best) for name, row in rows.items()]
        name = tag("th", display_name(metric), tag("span", arrow, class_="muted"), scope="row")
        body.append(tag("tr", name, *cells, tag("td", meaning.text, class_="meaning")))
    table = tag("div", tag("table", tag("thead", head), tag("tbody", *body), class_="metrics"), class_="scroll")
    note = (
        f"Protocol {result.protocol}, split {result.split}: trained on {result.training_interactions:,} interactions "
        f"and judged by {result.test_interactions:,}, of which {result.cold_interactions:,} are of users or items that "
        "training does not know. "
        + ("The published vectors were then trained again on all interactions. " if content.refit_on_all else "")
        + "↑ higher is better, ↓ lower is better, the best in bold; without an arrow it is a matter of taste."
    )
    return section("quality", "How good it is", note, table)


def _metric_cell(value: float | None, rows: dict[str, dict[str, float]], metric: str, *, is_best: bool) -> Markup:
    if value is None:
        return tag("td", "—", class_="number muted")
    most = max((abs(row[metric]) for row in rows.values() if math.isfinite(row.get(metric, math.nan))), default=0)
    text = tag("strong", figure(value, most)) if is_best else figure(value, most)
    bar = Markup("")
    if most > 0 and math.isfinite(value):
        bar = tag("span", class_="bar", style=f"width:{100 * abs(value) / most:.1f}%")
    return tag("td", text, tag("span", bar, class_="track"), class_="number best" if is_best else "number")
