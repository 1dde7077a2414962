"""The client's commands: ``shortlist recommend``, ``similar``, ``models``, ``health``, ``loadtest`` and ``demo``."""

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from shortlist_client import health
from shortlist_client.client import DEFAULT_TIMEOUT_SECONDS, Client
from shortlist_client.connection_options import add_connection_options, connection_of, credentials_of, tls_options
from shortlist_client.errors import ShortlistError, Unavailable
from shortlist_client.loadtest.command import add_options as add_loadtest_options
from shortlist_client.loadtest.command import run_loadtest
from shortlist_client.loadtest.connection import Target
from shortlist_client.results import Fallback, Item, Model, ModelDetails, Shortfall
from shortlist_client.rpcs import Scalar

_TITLE_WIDTH = 50
_MAX_ATTRIBUTES = 32  # as many as the contract lets a request name
_LOADING_SECONDS = 120.0  # which reading a large version may take
_SHOWN_ATTRIBUTES = ("title", "genres")


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the client's commands to ``shortlist``."""
    recommend = commands.add_parser("recommend", help="ask a running server for a user's items")
    who = recommend.add_mutually_exclusive_group(required=True)
    who.add_argument("user", nargs="?", metavar="USER", help="the user's id in the training data")
    who.add_argument("--history", nargs="+", metavar="ITEM", help="instead: the items of a user new to the model")
    recommend.add_argument("--include-seen", action="store_true", help="also items the user interacted with")
    recommend.add_argument("--exclude", nargs="+", default=[], metavar="ITEM", help="items to leave out")
    recommend.add_argument(
        "--fallback", choices=list(Fallback), default=Fallback.NONE, help="when the model has no vector for the user"
    )
    recommend.add_argument("--min-score", type=float, metavar="SCORE", help="leave out items that score less")
    recommend.add_argument(
        "--at-most", type=_limit, metavar="N:NAME", help="of items that share a value of an attribute, the best N only"
    )
    recommend.add_argument("--offset", type=int, default=0, metavar="N", help="skip the best N items, for paging")
    recommend.add_argument("--rerank", action="store_true", help="let the model's neural ranker order the best items")
    _add_asking(recommend, _recommend)

    similar = commands.add_parser("similar", help="ask a running server for an item's neighbours")
    similar.add_argument("items", nargs="+", metavar="ITEM", help="item ids; several are asked for together")
    _add_asking(similar, _similar)

    models = commands.add_parser("models", help="ask a running server for its models")
    models_commands = models.add_subparsers(title="models commands", metavar="COMMAND", required=True)
    _add_connection(models_commands.add_parser("list", help="every version and its state"), _list_models)
    _add_connection(models_commands.add_parser("status", help="how the server is doing"), _show_status)
    for name, help_, ask in (
        ("load", "load a version beside the others", _load_model),
        ("unload", "free a version after its last request", _unload_model),
    ):
        command = models_commands.add_parser(name, help=f"{help_}; the server must be one with --admin")
        command.add_argument("version", type=int, metavar="VERSION")
        _add_connection(command, ask, _LOADING_SECONDS)
    label = models_commands.add_parser("label", help="point a label at a version; the server must be one with --admin")
    label.add_argument("label", metavar="LABEL", help="1 to 63 of a-z, 0-9 and '-'")
    to = label.add_mutually_exclusive_group(required=True)
    to.add_argument("version", type=int, nargs="?", metavar="VERSION")
    to.add_argument("--remove", action="store_true", help="take the label away")
    _add_connection(label, _set_label, _LOADING_SECONDS)

    asked = commands.add_parser("health", help="exit with 0 when a server answers queries, with 1 when it does not")
    asked.set_defaults(run=_health)
    _add_server(asked)

    loadtest = commands.add_parser("loadtest", help="load a running server and measure what it answers and how late")
    add_connection_options(loadtest)
    add_loadtest_options(loadtest)
    loadtest.set_defaults(run=_loadtest)

    demo = commands.add_parser("demo", help="train on MovieLens-100K, serve, ask and measure, then stop")
    demo.add_argument("--models-dir", type=Path, default=Path("models"), metavar="DIR", help="where versions go")
    demo.set_defaults(run=_demo)


def _add_asking(parser: argparse.ArgumentParser, ask: Callable[[Client, argparse.Namespace], None]) -> None:
    parser.add_argument("-k", type=int, default=10, help="how many items (default: 10)")
    for option, which in (("--must", "only items with"), ("--must-not", "no items with")):
        parser.add_argument(
            option,
            action="append",
            default=[],
            type=_condition,
            metavar="NAME=VALUE",
            help=f"{which} this attribute; may be repeated, and several values of one NAME are any of them",
        )
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model-version", type=int, help="the version that shall answer (default: the server's)")
    model.add_argument("--model-label", metavar="LABEL", help="the label whose version shall answer")
    _add_connection(parser, ask)


def _add_connection(
    parser: argparse.ArgumentParser,
    ask: Callable[[Client, argparse.Namespace], None],
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    _add_server(parser, timeout_seconds)
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON")

    def run(options: argparse.Namespace) -> int:
        try:
            with Client(**vars(connection_of(options)), timeout_seconds=options.timeout) as client:
                ask(client, options)
        except ShortlistError as error:
            hint = "; is `shortlist serve` running?" if isinstance(error, Unavailable) else ""
            sys.stderr.write(f"shortlist: {error}{hint}\n")
            return 1
        except (OSError, ValueError) as error:  # of files that are named, or what no message can carry
            sys.stderr.write(f"shortlist: {error}\n")
            return 1
        return 0

    parser.set_defaults(run=run)


def _add_server(parser: argparse.ArgumentParser, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
    add_connection_options(parser)
    parser.add_argument("--timeout", type=_seconds, default=timeout_seconds, metavar="SECONDS")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text}")
    return seconds


def _limit(text: str) -> tuple[str, int]:
    at_most, colon, name = text.partition(":")
    if not (colon and at_most.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be N:NAME, such as 2:genres, not {text}")
    return name, int(at_most)


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, such as genres=Comedy, not {text}")
    return name, value


def _health(options: argparse.Namespace) -> int:
    try:
        connection = connection_of(options)
        with connection.open() as channel:
            state = health.check(channel, options.timeout, connection.metadata)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"shortlist: {error}\n")
        return 1
    except grpc.RpcError as error:
        sys.stderr.write(f"shortlist: {options.server} does not answer: {error.details()}\n")
        return 1
    sys.stdout.write(f"{state}\n")
    return 0 if state == health.SERVING else 1


def _recommend(client: Client, options: argparse.Namespace) -> None:
    model = client.get_model(model_version=options.model_version, model_label=options.model_label)
    answer = client.recommend(
        options.user,
        history=options.history,
        k=options.k,
        offset=options.offset,
        exclude_seen=not options.include_seen,
        exclude_item_ids=options.exclude,
        must=_typed(model, options.must),
        must_not=_typed(model, options.must_not),
        min_score=options.min_score,
        diversity=options.at_most,
        fallback=options.fallback,
        rerank=options.rerank,
        attributes=_attributes(model, options),
        model_version=options.model_version,
        model_label=options.model_label,
    )
    if options.json:
        return _print_json(dataclasses.asdict(answer))
    who = f"user {options.user}" if options.history is None else f"a history of {', '.join(options.history)}"
    _print(f"{answer.source.replace('_', ' ')} items for {who}, from model version {answer.model_version}")
    if answer.unknown_history_items:
        _print(f"the model does not know {answer.unknown_history_items} of them")
    return _print_items(answer.items, answer.shortfall, before=options.offset)


def _similar(client: Client, options: argparse.Namespace) -> None:
    model = client.get_model(model_version=options.model_version, model_label=options.model_label)
    answer = client.similar_items(
        options.items,
        k=options.k,
        must=_typed(model, options.must),
        must_not=_typed(model, options.must_not),
        attributes=_attributes(model, options),
        model_version=options.model_version,
        model_label=options.model_label,
    )
    if options.json:
        return _print_json(dataclasses.asdict(answer))
    _print(f"items like {', '.join(options.items)}, from model version {answer.model_version}")
    return _print_items(answer.items, answer.shortfall)


def _list_models(client: Client, options: argparse.Namespace) -> None:
    models = client.list_models()
    if options.json:
        listed = [dataclasses.asdict(model) for model in models]
        compared = None if models.shadow is None else dataclasses.asdict(models.shadow)
        return _print_json({"models": listed, "splits": dict(models.splits), "shadow": compared})
    if not models:
        _print("the server's models folder is empty; `shortlist train` publishes a version")
    for model in models:
        _print_model(model)
    for label, percent in models.splits.items():
        _print(f"{percent:g}% of the users go to {label}")
    if (shadow := models.shadow) is not None:
        _print(
            f"shadow {shadow.label}, version {shadow.version or 'none'}: {shadow.compared_requests:,} compared, "
            f"overlap {shadow.mean_overlap:.3f}, {shadow.mean_shadow_micros:,.0f} us a request against "
            f"{shadow.mean_answer_micros:,.0f} us"
        )
    return _show_status(client, options)


def _show_status(client: Client, options: argparse.Namespace) -> None:
    status = client.server_status()
    if options.json:
        return _print_json(None if status is None else dataclasses.asdict(status))
    if status is None:
        return None
    _print(
        f"process {status.pid}, {status.lane} lane, up {status.uptime_seconds:,.0f} s: "
        f"{status.calls_answered:,} calls answered, {status.calls_failed:,} failed, "
        f"{status.queue_depth:,} of {status.queue_places:,} places taken"
    )
    return None


def _print_model(model: Model) -> None:
    mark = "*" if model.default else " "
    labels = f" [{', '.join(model.labels)}]" if model.labels else ""
    reason = f": {model.state_reason}" if model.state_reason else ""
    answers = f", {model.answers:,} answers" if model.answers else ""
    _print(f"{mark} {model.version:>6}  {model.model_name or '?':<12} {model.state}{labels}{reason}{answers}")


def _load_model(client: Client, options: argparse.Namespace) -> None:
    _show_model(client.load_model(options.version), options)


def _unload_model(client: Client, options: argparse.Namespace) -> None:
    _show_model(client.unload_model(options.version), options)


def _set_label(client: Client, options: argparse.Namespace) -> None:
    _show_model(client.set_label(options.label, options.version), options)


def _show_model(model: Model | None, options: argparse.Namespace) -> None:
    if options.json:
        _print_json(None if model is None else dataclasses.asdict(model))
    elif model is not None:
        _print_model(model)


def _attributes(model: ModelDetails, options: argparse.Namespace) -> list[str]:
    """The attributes worth showing that the model has."""
    known = model.attribute_names
    return known[:_MAX_ATTRIBUTES] if options.json else [name for name in _SHOWN_ATTRIBUTES if name in known]


def _typed(model: ModelDetails, given: Sequence[tuple[str, str]]) -> dict[str, list[Scalar]]:
    """Attribute to values of its type; what cannot be one stays a text, of which the server says what is wrong."""
    types = {column["name"]: column["type"] for column in model.manifest.get("item_attributes", [])}
    conditions: dict[str, list[Scalar]] = {}
    for name, text in given:
        value: Scalar = text
        with contextlib.suppress(KeyError, ValueError):
            value = _TYPES[types[name]](text)
        conditions.setdefault(name, []).append(value)
    return conditions


def _yes_or_no(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


_TYPES: Mapping[str, Callable[[str], Scalar]] = {
    "ATTRIBUTE_TYPE_INT": int,
    "ATTRIBUTE_TYPE_DOUBLE": float,
    "ATTRIBUTE_TYPE_BOOL": _yes_or_no,
}


def _print_items(items: Sequence[Item], shortfall: Shortfall | None, before: int = 0) -> None:
    for place, item in enumerate(items, start=before + 1):
        title, genres = str(item.attributes.get("title", "")), item.attributes.get("genres", "")
        title = title if len(title) <= _TITLE_WIDTH else title[: _TITLE_WIDTH - 1] + "…"
        shown = ", ".join(genres) if isinstance(genres, list) else genres
        _print(f"{place:>4}  {item.score:>8.3f}  {item.id:<8} {title:<{_TITLE_WIDTH}} {shown}".rstrip())
    if shortfall is not None:
        _print(f"      {len(items)} items only: {shortfall.replace('_', ' ')}")


def _loadtest(options: argparse.Namespace) -> int:
    try:
        connection = connection_of(options)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"shortlist: {error}\n")
        return 2
    # Each process of the load test reads the files by itself: credentials cannot be passed on.
    credentials = functools.partial(credentials_of, tls_options(options))
    target = Target(connection.target, credentials, connection.metadata, connection.server_name)
    return run_loadtest(options, target)


def _demo(options: argparse.Namespace) -> int:
    from shortlist_client.demo import run_demo

    return run_demo(options.models_dir)


def _print_json(value: Any) -> None:
    _print(json.dumps(value, indent=2, ensure_ascii=False))


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
