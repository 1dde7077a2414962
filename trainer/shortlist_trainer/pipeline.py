"""data -> split -> train -> evaluate -> train on everything -> export -> publish."""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shortlist_trainer.data.dataset import Dataset, Interactions
from shortlist_trainer.data.split import Split, divide, k_fold, validation_holdout
from shortlist_trainer.errors import ConfigError
from shortlist_trainer.evaluation.protocols import HEADLINES, PROTOCOLS, EvaluationResult, evaluate, headline
from shortlist_trainer.export.attributes import attribute_table
from shortlist_trainer.export.clusters import build_clusters, check_cluster_counts
from shortlist_trainer.export.folder import Export, build_indexes, seen_items, write_folder
from shortlist_trainer.export.index import IndexGoal
from shortlist_trainer.export.publish import publish, require_publishable
from shortlist_trainer.models import (
    MODELS,
    Checkpoint,
    Fitted,
    Model,
    ModelConfig,
    TrainingRun,
    Validation,
    fit,
    parse_settings,
)
from shortlist_trainer.progress import Progress, stopping_on_interrupt


@dataclass(frozen=True)
class TrainingJob:
    """What to train, and where the result goes.

    Attributes:
        model: one of ``MODELS``.
        settings: hyper-parameters as NAME=VALUE.
        models_dir: where the version is published.
        device: "auto" for a GPU where there is one, or a torch device.
        seed: draws the split and the first parameters.
        split: how the data is divided for the evaluation; None for the data's own split where it has one, and for a
            random one where it has none.
        test_share: the share of interactions set aside where the split leaves that open.
        refit: train again on all interactions before publishing.
        resume: go on from the checkpoints of an equal job that did not end.
        mixed_precision: networks may compute in bfloat16; None to do so on a GPU.
        user_clusters: how many clusters of users; None chooses.
        item_clusters: how many clusters of items; None chooses.
        index_goal: what the indexes shall reach; None for recall .99 at 10.
    """

    model: str
    models_dir: Path
    settings: Iterable[str] = ()
    device: str = "auto"
    seed: int = 42
    split: str | None = None
    test_share: float = 0.2
    refit: bool = True
    resume: bool = False
    mixed_precision: bool | None = None
    user_clusters: int | None = None
    item_clusters: int | None = None
    index_goal: IndexGoal | None = None


@dataclass(frozen=True)
class Published:
    """A version that a job published, the figures it states, and the model whose vectors it holds."""

    version: int
    folder: Path
    evaluation: EvaluationResult
    model: Model[ModelConfig]


def run(job: TrainingJob, dataset: Dataset) -> Published:
    """Trains, evaluates and publishes a model.

    Ctrl-C ends the training early: the model as it is then, or as it was at its best where it is validated, is
    evaluated and published, and an equal job with ``resume`` goes on from the last epoch's checkpoint.

    Raises:
        TrainerError: the data or a setting does not allow it; nothing is published.
    """
    model_type = MODELS[job.model]
    config = parse_settings(model_type.config_type, job.settings)
    device = choose_device(job.device)
    attribute_table(dataset.item_attributes, dataset.interactions.item_popularity())  # refused now, not after training
    check_cluster_counts(job.user_clusters, job.item_clusters, dataset)
    split = divide(dataset, job.split or default_split(dataset), job.test_share, job.seed)
    checkpoints = [job.models_dir / ".checkpoints" / f"{job.model}-{part}.safetensors" for part in ("split", "all")]
    if job.resume and not any(path.exists() for path in checkpoints):
        _say(f"no run to resume in {checkpoints[0].parent}; starting with the first epoch")
    require_publishable(job.models_dir)
    training = TrainingRun(
        device, job.seed, mixed_precision=_mixed(job, device), checkpoint=Checkpoint(checkpoints[0], job.resume)
    )
    _say(f"training {job.model} on {len(split.train):,} interactions ({split.description}) on {device}")
    fitted = _train(model_type, config, split.train, training, model_type.protocol)
    evaluation = _judge(fitted, split, model_type.protocol)
    model, stopped, refit = fitted.model, fitted.stopped, False
    if job.refit and not stopped:
        _say(f"training again on all {len(dataset.interactions):,} interactions")
        again = replace(
            training,
            progress=Progress("train on all"),
            checkpoint=Checkpoint(checkpoints[1], job.resume),
            last_epoch=fitted.history.best_epoch,
        )
        on_all = _fit(model_type, config, dataset.interactions, again)
        stopped = on_all.stopped
        if not stopped:  # half a training on all interactions is no better than a whole one on most of them
            model, refit = on_all.model, True
    _say("building and measuring the indexes")
    embeddings = model.embeddings()
    # What was held out and never trained on is neither seen nor counted.
    published = dataset if refit else replace(dataset, interactions=split.train, given_split=None)
    seen = seen_items(published.interactions.user_offsets(), published.interactions.items)
    items, neighbours = build_indexes(embeddings, seen, job.seed, job.index_goal, _say)
    _say("grouping users and items into clusters")
    clusters = build_clusters(embeddings, published.interactions, job.user_clusters, job.item_clusters, job.seed)
    export = Export(
        model_name=job.model,
        hyperparameters=asdict(model.config) | {"seed": job.seed},
        embeddings=embeddings,
        dataset=published,
        evaluation=evaluation,
        refit_on_all=refit,
        items=items,
        neighbours=neighbours,
        clusters=clusters,
        history=fitted.history,
        ranker=model.ranker(),
        fold_in=model.fold_in(),
    )
    version = publish(job.models_dir, lambda folder, version: write_folder(folder, version, export))
    if stopped:
        _say("the same command with --resume goes on from where it was stopped")
    else:
        for path in checkpoints:
            path.unlink(missing_ok=True)
    return Published(version, job.models_dir / str(version), evaluation, model)


def _train(
    model_type: type[Model[Any]], config: ModelConfig, interactions: Interactions, run: TrainingRun, protocol: str
) -> Fitted:
    """Trains a model; where the configuration has patience, on a part, the rest saying which epoch is best."""
    if config.patience == 0:
        return _fit(model_type, config, interactions, run)
    split = validation_holdout(interactions, protocol, config.validation_share, run.seed)
    _say(f"of these, {len(split.test):,} for validation ({split.description})")
    metric, higher_is_better = HEADLINES[protocol]
    validation = Validation(metric, higher_is_better, lambda model: headline(model, split, protocol, run.seed))
    return _fit(model_type, config, split.train, replace(run, validation=validation))


def _judge(fitted: Fitted, split: Split, protocol: str, seed: int = 0) -> EvaluationResult:
    result = evaluate(fitted.model, split, protocol, seed)
    # Fewer than the split's where a part of them was for validation.
    return replace(result, training_interactions=len(fitted.model.interactions))


def _fit(model_type: type[Model[Any]], config: ModelConfig, interactions: Interactions, run: TrainingRun) -> Fitted:
    with stopping_on_interrupt("shortlist: stopping; once more to end at once and keep nothing"):
        return fit(model_type, config, interactions, run)


def _mixed(job: "TrainingJob | EvaluationJob", device: torch.device) -> bool:
    return device.type == "cuda" if job.mixed_precision is None else job.mixed_precision


def default_split(dataset: Dataset, protocol: str | None = None) -> str:
    """The data's own split where it has one, else the one that suits the protocol."""
    if dataset.given_split is not None:
        return "given"
    return "leave-one-out" if protocol == "leave-one-out" else "random"


@dataclass(frozen=True)
class EvaluationJob:
    """What to judge, and how.

    Attributes:
        model: one of ``MODELS``.
        settings: hyper-parameters as NAME=VALUE.
        protocol: one of ``PROTOCOLS``; None for the one that suits the model.
        split: one of ``SPLITS``; None for the data's own, or the one that suits the protocol.
        folds: judge on this many folds instead of one split.
        seeds: train and judge once with each.
        device: "auto" for a GPU where there is one, or a torch device.
        test_share: the share of interactions set aside where the split leaves that open.
        mixed_precision: networks may compute in bfloat16; None to do so on a GPU.
    """

    model: str
    settings: Iterable[str] = ()
    protocol: str | None = None
    split: str | None = None
    folds: int | None = None
    seeds: Sequence[int] = (42,)
    device: str = "auto"
    test_share: float = 0.2
    mixed_precision: bool | None = None


@dataclass(frozen=True)
class EvaluationRun:
    """One training and its figures.

    Attributes:
        seed: of the split where that is random, and of the training.
        training_seconds: wall time of the training alone.
        result: the figures.
    """

    seed: int
    training_seconds: float
    result: EvaluationResult


def run_evaluation(job: EvaluationJob, dataset: Dataset) -> list[EvaluationRun]:
    """Trains and judges without publishing: once for every seed and fold.

    Raises:
        TrainerError: the data or a setting does not allow it.
    """
    model_type = MODELS[job.model]
    config = parse_settings(model_type.config_type, job.settings)
    device = choose_device(job.device)
    protocol = job.protocol or model_type.protocol
    if protocol not in PROTOCOLS:
        raise ConfigError(f"there is no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    runs = []
    for seed in job.seeds:
        splits: list[Split]
        if job.folds is not None:
            splits = k_fold(dataset.interactions, job.folds, seed)
        else:
            splits = [divide(dataset, job.split or default_split(dataset, protocol), job.test_share, seed)]
        for split in splits:
            _say(f"training {job.model} on {len(split.train):,} interactions ({split.description}) on {device}")
            started = time.perf_counter()
            training = TrainingRun(device, seed, mixed_precision=_mixed(job, device))
            fitted = _train(model_type, config, split.train, training, protocol)
            seconds = time.perf_counter() - started
            runs.append(EvaluationRun(seed, seconds, _judge(fitted, split, protocol, seed)))
            if fitted.stopped:
                return runs
    return runs


def choose_device(name: str) -> torch.device:
    """The torch device that ``name`` means, "auto" being a GPU where there is one.

    Raises:
        ConfigError: torch knows no such device, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(f"the device must be cpu or cuda, not {name!r}")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _say(text: str) -> None:
    sys.stderr.write(f"shortlist: {text}\n")
