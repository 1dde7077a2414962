"""The trainer's commands: ``shortlist data``, ``train`` and ``evaluate``; ``clusters`` has a module of its own."""

import argparse
import dataclasses
import datetime as dt
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shortlist_trainer.cluster_commands import add_cluster_commands
from shortlist_trainer.index_command import add_index_command, add_index_options

# Nothing here imports torch, pandas or FAISS before a command runs, so that `shortlist --help` stays quick.
if TYPE_CHECKING:
    from shortlist_trainer.data.dataset import Dataset
    from shortlist_trainer.data.rows import ColumnNames
    from shortlist_trainer.evaluation.protocols import EvaluationResult


_Defaults = argparse.ArgumentDefaultsHelpFormatter


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the trainer's commands to ``shortlist``."""
    data = commands.add_parser("data", help="bring data sets here")
    data_commands = data.add_subparsers(title="data commands", metavar="COMMAND", required=True)
    fetch = data_commands.add_parser("fetch", help="bring a known data set into the local cache")
    fetch.add_argument("name", metavar="NAME", help="ml-100k, ml-1m, ml-20m or ml-latest-small")
    fetch.set_defaults(run=_fetch, extra="trainer")

    stats = data_commands.add_parser("stats", help="users, items, ratings, density, rating histogram, long tail")
    stats.add_argument("data", metavar="D", help="a known name, a folder, a file or a zip")
    _add_reading_options(stats)
    stats.add_argument("--json", action="store_true", help="print the figures as JSON")
    stats.set_defaults(run=_stats, extra="trainer")

    train = commands.add_parser("train", help="train, evaluate and publish a model", formatter_class=_Defaults)
    train.set_defaults(run=_train, extra="trainer")
    _add_data_options(train)
    model_options = _add_model_options(train)
    model_options.add_argument("--seed", type=_seed, default=42, help="of the split and of the first parameters")
    model_options.add_argument(
        "--no-refit",
        action="store_true",
        help="publish the evaluated model itself, instead of one trained again on all interactions",
    )
    _add_split_options(train)
    model_options.add_argument(
        "--resume", action="store_true", help="go on from the last epoch of an equal run that was stopped or died"
    )
    clusters = train.add_argument_group("clusters", "as many as the data suggests, if not given")
    clusters.add_argument("--user-clusters", type=int, metavar="K", help="how many clusters of users")
    clusters.add_argument("--item-clusters", type=int, metavar="K", help="how many clusters of items")
    add_index_options(train)
    train.add_argument("--models-dir", type=Path, default=Path("models"), metavar="DIR", help="where versions go")
    _add_evaluate(commands)
    _add_tune(commands)
    add_cluster_commands(commands)
    add_index_command(commands)


def _add_evaluate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    evaluate = commands.add_parser(
        "evaluate", help="figures only: train and judge without publishing", formatter_class=_Defaults
    )
    evaluate.set_defaults(run=_evaluate, extra="trainer")
    _add_data_options(evaluate)
    _add_model_options(evaluate)
    how = _add_split_options(evaluate)
    how.add_argument("--protocol", metavar="P", help="rating, full-rank or leave-one-out; guessed by the model")
    how.add_argument("--folds", type=int, metavar="N", help="judge on N folds instead of one split")
    how.add_argument("--seeds", type=_seed, nargs="+", default=[42], metavar="SEED", help="judge once with each")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write every run and the means to this file")


def _add_tune(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    tune = commands.add_parser(
        "tune", help="choose hyper-parameters by a holdout of the training data", formatter_class=_Defaults
    )
    tune.set_defaults(run=_tune, extra="trainer")
    _add_data_options(tune)
    options = _add_model_options(tune)
    options.add_argument("--seed", type=_seed, default=42, help="of the split, the holdout, the training, the search")
    how = _add_split_options(tune)
    how.add_argument("--protocol", metavar="P", help="rating, full-rank or leave-one-out; guessed by the model")
    search = tune.add_argument_group("search")
    search.add_argument("--trials", type=_count, default=30, metavar="N", help="trainings to run")
    search.add_argument("--minutes", type=float, metavar="N", help="begin no training after so many minutes")
    search.add_argument(
        "--study", type=Path, metavar="FILE", help="keeps all trials, to go on with later; tuning-MODEL.db if not given"
    )
    search.add_argument(
        "--out", type=Path, metavar="FILE", help="where the best configuration goes; tuned-MODEL.json if not given"
    )


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    options = parser.add_argument_group("data")
    options.add_argument("--data", required=True, metavar="D", help="a known name, a folder, a file or a zip")
    _add_reading_options(options)


def _add_reading_options(options: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    options.add_argument(
        "--format",
        metavar="F",
        help="movielens-100k, movielens-1m, movielens-csv, netflix, ncf, lightgcn, csv or parquet; or guessed",
    )
    options.add_argument(
        "--columns",
        metavar="C",
        help="columns of a csv or parquet file: user=…,item=…[,rating=…][,timestamp=…]; "
        "if not given, the columns of these names",
    )
    options.add_argument(
        "--items", metavar="FILE", help="csv or parquet file of item attributes, its first column the item id"
    )
    options.add_argument(
        "--skip-bad-rows", action="store_true", help="leave malformed rows out and count them, instead of stopping"
    )


def _add_model_options(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    options = parser.add_argument_group("model")
    options.add_argument(
        "--model", default="ials", metavar="M", help="ials, softmax-mf, ncf, svdpp, mf, mf-fullbatch or ncf-rating"
    )
    options.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a hyper-parameter; may be repeated"
    )
    options.add_argument(
        "--config", type=Path, metavar="FILE", help="hyper-parameters that shortlist tune chose; --set goes before them"
    )
    options.add_argument(
        "--mixed-precision",
        action=argparse.BooleanOptionalAction,
        help="let networks compute in bfloat16; if not given, on a GPU only",
    )
    options.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1 …")
    return options


def _add_split_options(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    options = parser.add_argument_group("evaluation")
    options.add_argument(
        "--split",
        metavar="S",
        help="given, random, stratified, leave-one-out or time; the data's own where it has one, if not given",
    )
    options.add_argument("--test-share", type=float, default=0.2, help="share of interactions to evaluate on")
    return options


def _seed(text: str) -> int:
    seed = int(text)
    if not 0 <= seed < 2**32:
        raise argparse.ArgumentTypeError(f"must lie between 0 and {2**32 - 1}, not be {text}")
    return seed


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return count


def _fetch(options: argparse.Namespace) -> int:
    from shortlist_trainer.data.fetch import fetch
    from shortlist_trainer.errors import TrainerError

    try:
        folder = fetch(options.name)
    except TrainerError as error:
        return _fail(error)
    _print(f"{options.name} is in {folder}")
    _print(f"next: shortlist train --data {options.name} --models-dir models")
    return 0


def _stats(options: argparse.Namespace) -> int:
    from shortlist_trainer.data.statistics import HEAD_SHARE, statistics_of
    from shortlist_trainer.errors import TrainerError

    try:
        dataset = _read(options)
    except (TrainerError, OSError) as error:
        return _fail(error)
    figures = statistics_of(dataset)
    if options.json:
        _print(json.dumps(dataclasses.asdict(figures), indent=2))
        return 0
    _print(f"{dataset.name} ({dataset.format})")
    _print(f"  users          {figures.users:>12,}   each with {_spread(figures.interactions_per_user)} interactions")
    _print(f"  items          {figures.items:>12,}   each with {_spread(figures.interactions_per_item)} interactions")
    _print(f"  interactions   {figures.interactions:>12,}   {dataset.duplicates_merged:,} duplicates merged")
    _print(f"  density        {figures.density:>12.3%}")
    tail = f"of the interactions are with the least touched {1 - HEAD_SHARE:.0%} of the items"
    _print(f"  long tail      {figures.long_tail_share:>12.1%}   {tail}")
    if figures.first_and_last is not None:
        first, last = (dt.datetime.fromtimestamp(time, dt.UTC).date() for time in figures.first_and_last)
        _print(f"  time           {first!s:>12}   to {last}")
    most = max(figures.rating_counts.values(), default=0)
    for rating, count in figures.rating_counts.items():
        _print(f"  rating {rating:<7g} {count:>12,}   {'█' * round(40 * count / most)}")
    return 0


def _spread(figures: tuple[int, float, int]) -> str:
    least, median, most = figures
    return f"{least:,} to {most:,} (median {median:,.0f})"


def _train(options: argparse.Namespace) -> int:
    from shortlist_trainer.errors import TrainerError
    from shortlist_trainer.export.index import parse_goal
    from shortlist_trainer.pipeline import TrainingJob, run

    try:
        goal = parse_goal(options.recall_target, options.index_memory_mb)  # refused before the data is read
        dataset = _load(options)
        job = TrainingJob(
            model=options.model,
            models_dir=options.models_dir,
            settings=_settings(options),
            device=options.device,
            seed=options.seed,
            split=options.split,
            test_share=options.test_share,
            refit=not options.no_refit,
            resume=options.resume,
            mixed_precision=options.mixed_precision,
            user_clusters=options.user_clusters,
            item_clusters=options.item_clusters,
            index_goal=goal,
        )
        published = run(job, dataset)
    except (TrainerError, OSError) as error:
        return _fail(error)
    _print_evaluation(options.model, published.evaluation)
    _print(f"published version {published.version} in {published.folder}")
    _print(f"its report: {published.folder / 'report.html'}")
    _print(f"next: shortlist serve --models-dir {options.models_dir}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from shortlist_trainer.errors import TrainerError
    from shortlist_trainer.pipeline import EvaluationJob, run_evaluation

    try:
        dataset = _load(options)
        job = EvaluationJob(
            model=options.model,
            settings=_settings(options),
            protocol=options.protocol,
            split=options.split,
            folds=options.folds,
            seeds=options.seeds,
            device=options.device,
            test_share=options.test_share,
            mixed_precision=options.mixed_precision,
        )
        runs = run_evaluation(job, dataset)
        for run in runs:
            _print_evaluation(options.model, run.result)
        means = {
            metric: statistics.fmean(run.result.metrics[metric] for run in runs) for metric in runs[0].result.metrics
        }
        _print(f"mean of {len(runs)}: " + ", ".join(f"{metric} {mean:.4f}" for metric, mean in means.items()))
        if options.json is not None:
            report = {"model": options.model, "mean": means, "runs": [dataclasses.asdict(run) for run in runs]}
            options.json.write_text(json.dumps(report, indent=2) + "\n")
    except (TrainerError, OSError) as error:
        return _fail(error)
    return 0


def _tune(options: argparse.Namespace) -> int:
    from shortlist_trainer.errors import TrainerError
    from shortlist_trainer.tuning import TuningJob, tune

    out = options.out or Path(f"tuned-{options.model}.json")
    try:
        dataset = _load(options)
        job = TuningJob(
            model=options.model,
            study=options.study or Path(f"tuning-{options.model}.db"),
            settings=_settings(options),
            protocol=options.protocol,
            split=options.split,
            test_share=options.test_share,
            trials=options.trials,
            minutes=options.minutes,
            device=options.device,
            mixed_precision=options.mixed_precision,
            seed=options.seed,
        )
        tuned = tune(job, dataset)
        tuned.write(out)
    except (TrainerError, OSError) as error:
        return _fail(error)
    _print(f"best of {tuned.trials} trials: {tuned.metric} {tuned.value:.4f} on the holdout")
    for name, value in tuned.settings.items():
        _print(f"  {name}={value}")
    _print(f"written to {out}")
    _print(f"next: shortlist train --data {options.data} --model {options.model} --config {out}")
    return 0


def _settings(options: argparse.Namespace) -> list[str]:
    """The hyper-parameters of the options: those of the file, then those given one by one.

    Raises:
        ConfigError: the file is no configuration of the model.
    """
    from shortlist_trainer.models.config import read_settings

    return [*([] if options.config is None else read_settings(options.config, options.model)), *options.set]


def _load(options: argparse.Namespace) -> "Dataset":
    """The data set that the options name; also says whether the model they name exists.

    Raises:
        TrainerError: something they name does not exist, or the data cannot be read.
    """
    from shortlist_trainer.errors import ConfigError
    from shortlist_trainer.models import MODELS

    if options.model not in MODELS:
        raise ConfigError(f"there is no model {options.model!r}; there are {', '.join(MODELS)}")
    dataset = _read(options)
    _print(
        f"{dataset.name} ({dataset.format}): {len(dataset.interactions):,} interactions of "
        f"{len(dataset.user_ids):,} users with {len(dataset.item_ids):,} items; "
        f"{dataset.duplicates_merged:,} duplicates merged, {dataset.bad_rows_skipped:,} bad rows left out"
    )
    return dataset


def _read(options: argparse.Namespace) -> "Dataset":
    from shortlist_trainer.data.formats import ReadOptions
    from shortlist_trainer.data.source import load_dataset

    read_options = ReadOptions(
        columns=None if options.columns is None else _columns(options.columns),
        items_path=None if options.items is None else Path(options.items),
        skip_bad_rows=options.skip_bad_rows,
    )
    return load_dataset(options.data, options.format, read_options)


def _columns(text: str) -> "ColumnNames":
    from shortlist_trainer.data.rows import ColumnNames
    from shortlist_trainer.errors import ConfigError

    known = ("user", "item", "rating", "timestamp")
    names = dict(part.partition("=")[::2] for part in text.split(","))
    wrong = [part for part in names if part not in known or not names[part]]
    if wrong or "user" not in names or "item" not in names:
        raise ConfigError(f"--columns takes user=NAME,item=NAME[,rating=NAME][,timestamp=NAME], not {text!r}")
    return ColumnNames(**names)


def _print_evaluation(name: str, result: "EvaluationResult") -> None:
    _print(
        f"evaluation: {result.protocol}, {result.split}, {result.test_interactions:,} test interactions "
        f"({result.cold_interactions:,} with a user or item that training does not know)"
    )
    rows = {name: result.metrics, **result.baselines}
    _print(" " * 16 + "".join(f"{row:>13}" for row in rows))
    for metric in result.metrics:
        figures = [f"{values[metric]:>13.4f}" if metric in values else " " * 13 for values in rows.values()]
        _print(f"  {metric:<14}" + "".join(figures).rstrip())


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _fail(error: Exception) -> int:
    sys.stderr.write(f"shortlist: {error}\n")
    return 1
