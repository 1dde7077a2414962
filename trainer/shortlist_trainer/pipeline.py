"""data -> split -> train -> evaluate -> train on everything -> export -> publish."""

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from shortlist_trainer.data.dataset import Dataset
from shortlist_trainer.data.split import random_holdout
from shortlist_trainer.errors import ConfigError
from shortlist_trainer.evaluation.protocols import EvaluationResult, evaluate
from shortlist_trainer.export.folder import Export, build_indexes, write_folder
from shortlist_trainer.export.publish import publish
from shortlist_trainer.models import MODELS, TrainingRun, parse_settings
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
        test_share: the share of interactions set aside for the evaluation.
        refit: train again on all interactions before publishing.
    """

    model: str
    models_dir: Path
    settings: Iterable[str] = ()
    device: str = "auto"
    seed: int = 42
    test_share: float = 0.2
    refit: bool = True


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
    split = random_holdout(dataset.interactions, job.test_share, job.seed)
    _say(f"training {job.model} on {len(split.train):,} interactions ({split.description}) on {device}")
    model = model_type.fit(config, split.train, TrainingRun(device, job.seed, Progress("train")))
    evaluation = evaluate(model, split)
    trained_on = split.train
    if job.refit:
        _say(f"training again on all {len(dataset.interactions):,} interactions")
        model = model_type.fit(config, dataset.interactions, TrainingRun(device, job.seed, Progress("train on all")))
        trained_on = dataset.interactions
    _say("building and measuring the indexes")
    embeddings = model.embeddings()
    items, neighbours = build_indexes(embeddings, job.seed)
    export = Export(
        model_name=job.model,
        hyperparameters=asdict(config) | {"seed": job.seed},
        embeddings=embeddings,
        dataset=dataset,
        evaluation=evaluation,
        refit_on_all=trained_on is dataset.interactions,
        items=items,
        neighbours=neighbours,
    )
    version = publish(job.models_dir, lambda folder, version: write_folder(folder, version, export))
    return Published(version, job.models_dir / str(version), evaluation)


def choose_device(name: str) -> torch.device:
    """The torch device that ``name`` means, "auto" being a GPU where there is one.

    Raises:
        ConfigError: torch knows no such device, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _say(text: str) -> None:
    sys.stderr.write(f"shortlist: {text}\n")
