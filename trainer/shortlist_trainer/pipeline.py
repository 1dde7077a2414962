"""data -> split -> train -> evaluate -> train on everything -> export -> publish."""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from shortlist_trainer.data.dataset import Dataset, Interactions
from shortlist_trainer.data.split import Split, divide, k_fold
from shortlist_trainer.errors import ConfigError, TrainerError
from shortlist_trainer.evaluation.protocols import EvaluationResult, evaluate
from shortlist_trainer.export.attributes import attribute_table
from shortlist_trainer.export.clusters import build_clusters, check_cluster_counts
from shortlist_trainer.export.folder import Export, build_indexes, write_folder
from shortlist_trainer.export.publish import publish
from shortlist_trainer.models import MODELS, Model, ModelConfig, TrainingRun, parse_settings
from shortlist_trainer.progress import Progress


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
        user_clusters: how many clusters of users; None chooses.
        item_clusters: how many clusters of items; None chooses.
    """

    model: str
    models_dir: Path
    settings: Iterable[str] = ()
    device: str = "auto"
    seed: int = 42
    split: str | None = None
    test_share: float = 0.2
    refit: bool = True
    user_clusters: int | None = None
    item_clusters: int | None = None


@dataclass(frozen=True)
class Published:
    """A version that a job published."""

    version: int
    folder: Path
    evaluation: EvaluationResult


def run(job: TrainingJob, dataset: Dataset) -> Published:
    """Trains, evaluates and publishes a model.

    Raises:
        TrainerError: the data or a setting does not allow it; nothing is published.
    """
    model_type = MODELS[job.model]
    config = parse_settings(model_type.config_type, job.settings)
    device = choose_device(job.device)
    attribute_table(dataset.item_attributes, dataset.interactions.item_popularity())  # refused now, not after training
    check_cluster_counts(job.user_clusters, job.item_clusters, dataset)
    split = divide(dataset, job.split or default_split(dataset), job.test_share, job.seed)
    _say(f"training {job.model} on {len(split.train):,} interactions ({split.description}) on {device}")
    model = _fit(model_type, config, split.train, TrainingRun(device, job.seed, Progress("train")))
    evaluation = evaluate(model, split)
    if job.refit:
        _say(f"training again on all {len(dataset.interactions):,} interactions")
        again = TrainingRun(device, job.seed, Progress("train on all"))
        model = _fit(model_type, config, dataset.interactions, again)
    _say("building and measuring the indexes")
    embeddings = model.embeddings()
    items, neighbours = build_indexes(embeddings, job.seed)
    # What was held out and never trained on is neither seen nor counted.
    published = dataset if job.refit else replace(dataset, interactions=split.train, given_split=None)
    _say("grouping users and items into clusters")
    clusters = build_clusters(embeddings, published.interactions, job.user_clusters, job.item_clusters, job.seed)
    export = Export(
        model_name=job.model,
        hyperparameters=asdict(config) | {"seed": job.seed},
        embeddings=embeddings,
        dataset=published,
        evaluation=evaluation,
        refit_on_all=job.refit,
        items=items,
        neighbours=neighbours,
        clusters=clusters,
    )
    version = publish(job.models_dir, lambda folder, version: write_folder(folder, version, export))
    return Published(version, job.models_dir / str(version), evaluation)


def _fit(model_type: type[Model], config: ModelConfig, interactions: Interactions, run: TrainingRun) -> Model:
    """Trains a model; what torch cannot do becomes a TrainerError with advice."""
    try:
        return model_type.fit(config, interactions, run)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # torch has it and does not list it
        raise TrainerError(f"the least squares have no solution ({error}); raise regularization") from error
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise TrainerError(f"there is not enough memory on {run.device}; lower embedding_size") from error


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
    """

    model: str
    settings: Iterable[str] = ()
    protocol: str | None = None
    split: str | None = None
    folds: int | None = None
    seeds: Sequence[int] = (42,)
    device: str = "auto"
    test_share: float = 0.2


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
            model = _fit(model_type, config, split.train, TrainingRun(device, seed, Progress("train")))
            seconds = time.perf_counter() - started
            runs.append(EvaluationRun(seed, seconds, evaluate(model, split, protocol, seed)))
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
