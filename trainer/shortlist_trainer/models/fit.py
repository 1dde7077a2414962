"""The one training loop: epochs, validation, checkpoints, stopping."""

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.errors import ConfigError, Diverged, StoppedEarly, TrainerError
from shortlist_trainer.models.base import Checkpoint, Model, State, TrainingRun
from shortlist_trainer.models.config import ModelConfig
from shortlist_trainer.models.history import EpochRecord, TrainingHistory
from shortlist_trainer.progress import StopRequested


@dataclass(frozen=True)
class Fitted:
    """What a training run ends with.

    Attributes:
        model: trained; with validation as it was after the best epoch.
        history: what happened in each epoch.
        stopped: the user ended it before its last epoch.
    """

    model: Model[ModelConfig]
    history: TrainingHistory
    stopped: bool = False


def fit(model_type: type[Model[Any]], config: ModelConfig, interactions: Interactions, run: TrainingRun) -> Fitted:
    """Trains a model from its first epoch, or from the checkpoint that the run resumes.

    Raises:
        DataError: the interactions lack what the model learns from.
        ConfigError: the checkpoint to resume is of another run.
        Diverged: the loss is no longer a number.
        StoppedEarly: the user stopped it before the first epoch was done.
        TrainerError: memory is short.
    """
    try:
        return _fit(model_type, config.for_data(interactions), interactions, run)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # torch has it and does not list it
        raise Diverged(
            f"the least squares have no solution ({error}); {model_type.divergence_advice} and start again"
        ) from error
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise TrainerError(f"there is not enough memory on {run.device}; lower embedding_size") from error


def _fit(model_type: type[Model[Any]], config: ModelConfig, interactions: Interactions, run: TrainingRun) -> Fitted:
    model = model_type(config, interactions, run)
    identity = _identity(model_type, config, interactions, run)
    epochs = min(config.epochs, run.last_epoch or config.epochs)
    records: list[EpochRecord] = []
    best = _Best(run)
    stopped = False
    if run.checkpoint is not None and run.checkpoint.resume and run.checkpoint.path.exists():
        records = _resume(model, best, run.checkpoint.path, identity)
    with run.progress.bar(epochs * len(interactions), "interaction") as bar:
        bar.skip(len(records) * len(interactions))
        while len(records) < epochs and not best.is_long_ago(len(records), config.patience):
            epoch = len(records) + 1
            started = time.perf_counter()
            try:
                loss = model.train_epoch(epoch, bar)
            except StopRequested:
                stopped = True
                break
            if not math.isfinite(loss):
                advice = f"{model_type.divergence_advice} and start again"
                raise Diverged(f"the loss became {loss} in epoch {epoch}; {advice}")
            seconds = time.perf_counter() - started
            metric = None
            if run.validation is not None and (epoch % run.validation.every == 0 or epoch == epochs):
                metric = run.validation.measure(model)
            records.append(EpochRecord(epoch, loss, seconds, metric))
            best.look_at(model, records[-1])
            if run.checkpoint is not None:
                _save(run.checkpoint, model, best, records, identity)
    if not records:
        raise StoppedEarly("stopped before the first epoch was done; there is nothing to keep")
    # Without validation the parameters stay as they are: between two steps they are always whole.
    best.restore(model)
    metric_name = None if run.validation is None else run.validation.metric
    return Fitted(model, TrainingHistory(tuple(records), metric_name, best.epoch), stopped)


class _Best:
    """The best state so far by the validation metric; nothing where there is no validation."""

    def __init__(self, run: TrainingRun) -> None:
        self._validation = run.validation
        self.metric: float | None = None
        self.epoch: int | None = None
        self.state: State = {}

    def look_at(self, model: Model[Any], record: EpochRecord) -> None:
        """Keeps a copy of the model's state if it is the best yet."""
        if self._validation is None or record.metric is None:
            return
        sign = 1 if self._validation.higher_is_better else -1
        if self.metric is None or sign * record.metric > sign * self.metric:
            self.metric, self.epoch = record.metric, record.epoch
            self.state = {name: tensor.detach().cpu().clone() for name, tensor in model.state().items()}

    def is_long_ago(self, epoch: int, patience: int) -> bool:
        """Whether ``patience`` epochs have passed without a better one."""
        return patience > 0 and self.epoch is not None and epoch - self.epoch >= patience

    def restore(self, model: Model[Any]) -> None:
        """Brings the model back to the best state, where there is one."""
        if self.state:
            model.load_state(self.state)


def _identity(
    model_type: type[Model[Any]], config: ModelConfig, interactions: Interactions, run: TrainingRun
) -> dict[str, str]:
    """What must be equal for a checkpoint to be of the same run."""
    digest = hashlib.sha256()
    for array in (interactions.users, interactions.items, interactions.ratings):
        digest.update(b"none" if array is None else array.tobytes())
    return {
        "model": model_type.name,
        "hyper-parameters": json.dumps(asdict(config)),
        "seed": str(run.seed),
        "training data": digest.hexdigest(),
        "validation": "none" if run.validation is None else run.validation.metric,
    }


def _save(
    checkpoint: Checkpoint, model: Model[Any], best: _Best, records: list[EpochRecord], identity: dict[str, str]
) -> None:
    tensors: dict[str, Tensor] = {}
    for part, state in (("now", model.state()), ("best", best.state)):
        for name, tensor in state.items():
            tensors[f"{part}.{name}"] = tensor.detach().cpu().contiguous()
    progress = {"epochs": [asdict(record) for record in records], "best_epoch": best.epoch, "best_metric": best.metric}
    aside = checkpoint.path.with_suffix(".aside")
    checkpoint.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # save_file refuses tensors that share memory, as the parts do before the first better epoch.
        unshared = {name: tensor.clone() for name, tensor in tensors.items()}
        save_file(unshared, aside, metadata=identity | {"progress": json.dumps(progress)})
    except SafetensorError as error:
        raise OSError(f"{aside} cannot be written: {error}") from error
    aside.replace(checkpoint.path)  # at every moment there is a whole checkpoint


def _resume(model: Model[Any], best: _Best, path: Path, identity: dict[str, str]) -> list[EpochRecord]:
    """Brings model and best back to a checkpoint; returns the records of the epochs done."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # it is no mapping
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; start again without --resume") from error
    for what, value in identity.items():
        if metadata.get(what) != value:
            raise ConfigError(
                f"{path} is of a run with another {what}; give the same arguments, or start again without --resume"
            )
    progress = json.loads(metadata["progress"])
    best.epoch, best.metric = progress["best_epoch"], progress["best_metric"]
    best.state = {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("best.")}
    model.load_state({name[4:]: tensor for name, tensor in tensors.items() if name.startswith("now.")})
    return [EpochRecord(**record) for record in progress["epochs"]]
