"""Hyper-parameters: those that models share, and reading them from the command line."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Hyper-parameters that every model has; ``--set NAME=VALUE`` changes one."""

    embedding_size: int
    """Columns of the user and item embeddings."""

    epochs: int
    """Passes over the training interactions."""

    regularization: float
    """Weight of the squared norms of the parameters in the loss."""

    patience: int = 0
    """Stop after this many epochs without a better validation metric and keep the best; 0 trains all epochs."""

    validation_share: float = 0.1
    """The share of the training interactions that the validation metric is measured on, if patience is above 0."""

    def __post_init__(self) -> None:
        require(self.embedding_size >= 1, "embedding_size", "at least 1", self.embedding_size)
        require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        require(self.regularization >= 0, "regularization", "at least 0", self.regularization)
        require(self.patience >= 0, "patience", "at least 0", self.patience)
        require(0 < self.validation_share < 1, "validation_share", "between 0 and 1", self.validation_share)

    def for_data(self, interactions: Interactions) -> Self:  # noqa: ARG002 # for models whose defaults depend on it
        """The same with every default filled in that depends on the data."""
        return self


Schedule = Literal["constant", "step", "cosine"]


@dataclass(frozen=True, kw_only=True)
class AdamConfig(ModelConfig):
    """Hyper-parameters of every model that Adam trains."""

    learning_rate: float
    """Adam's step size in the first epoch."""

    schedule: Schedule = "cosine"
    """How the learning rate falls: not at all, by steps, or to zero along half a cosine over all epochs."""

    step_epochs: int = 3
    """With schedule=step: epochs between two falls."""

    step_factor: float = 0.7
    """With schedule=step: what the learning rate is multiplied by at each fall."""

    weight_decay: float = 0.0
    """The share of every parameter, times the learning rate, that each step takes off (Loshchilov & Hutter 2019)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.learning_rate > 0, "learning_rate", "above 0", self.learning_rate)
        require(self.step_epochs >= 1, "step_epochs", "at least 1", self.step_epochs)
        require(0 < self.step_factor <= 1, "step_factor", "above 0, at most 1", self.step_factor)
        require(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate after ``progress`` epochs, a fraction counting as far into the next."""
        match self.schedule:
            case "constant":
                return self.learning_rate
            case "step":
                return self.learning_rate * self.step_factor ** int(progress / self.step_epochs)
            case "cosine":
                return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress / self.epochs))


@dataclass(frozen=True, kw_only=True)
class GradientConfig(AdamConfig):
    """Hyper-parameters of every model that Adam trains by mini-batches."""

    batch_size: int
    """Training examples in one step of the optimiser."""

    dropout: float = 0.0
    """The share of inputs that are set to zero at random in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        require(0 <= self.dropout < 1, "dropout", "at least 0, below 1", self.dropout)


@dataclass(frozen=True)
class Range:
    """Values that tuning tries for a number.

    Attributes:
        low: the least.
        high: the greatest.
        log: whether it is the order of magnitude that matters.
        whole: whether only whole numbers are meant.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Choices:
    """Values that tuning tries for a name.

    Attributes:
        values: all of them.
    """

    values: tuple[str, ...]


SearchSpace = Mapping[str, Range | Choices]
"""Hyper-parameter to the values that tuning tries."""

C = TypeVar("C", bound=ModelConfig)


def parse_settings(config_type: type[C], settings: Iterable[str]) -> C:
    """A configuration with some hyper-parameters changed.

    Args:
        config_type: whose fields are the names that may be set.
        settings: texts of the form NAME=VALUE; of several for one name the last counts.

    Raises:
        ConfigError: a name is unknown, or a value is not of the field's type or range.
    """
    values: dict[str, str] = {}
    for setting in settings:
        name, divider, text = setting.partition("=")
        if not divider:
            raise ConfigError(f"--set takes NAME=VALUE, not {setting!r}")
        values[name] = text
    return configure(config_type, values)


def read_settings(path: Path, model: str) -> list[str]:
    """The hyper-parameters of a file that tuning wrote, as NAME=VALUE.

    Raises:
        ConfigError: the file is not there, is no such file, or is of another model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        of_model, settings = content["model"], dict(content["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no configuration that shortlist tune wrote: {error}") from error
    if of_model != model:
        raise ConfigError(f"{path} is a configuration of {of_model}, not of {model}; add --model {of_model}")
    return [f"{name}={value}" for name, value in settings.items()]


def configure(config_type: type[C], values: Mapping[str, str]) -> C:
    """A configuration with some hyper-parameters given as texts; raises ConfigError as ``parse_settings`` does."""
    types = get_type_hints(config_type)
    parsed: dict[str, Any] = {}
    for name, text in values.items():
        if name not in types:
            known = ", ".join(f"{field.name}={field.default}" for field in fields(config_type))
            raise ConfigError(f"there is no hyper-parameter {name!r}; there are {known}")
        parsed[name] = _parse(name, text, types[name])
    return config_type(**parsed)


def _parse(name: str, text: str, of_type: Any) -> Any:
    if get_origin(of_type) is Literal:
        if text not in get_args(of_type):
            raise ConfigError(f"{name} must be one of {', '.join(get_args(of_type))}, not {text!r}")
        return text
    if of_type is bool:
        if text not in ("true", "false"):
            raise ConfigError(f"{name} must be true or false, not {text!r}")
        return text == "true"
    if get_origin(of_type) is tuple:
        return tuple(_parse(name, part, get_args(of_type)[0]) for part in text.split(",") if text)
    try:
        return of_type(text)
    except ValueError as error:
        raise ConfigError(f"{name} must be of type {of_type.__name__}, not {text!r}") from error


def require(condition: bool, name: str, rule: str, value: object) -> None:
    """Raises ConfigError unless a hyper-parameter keeps its rule and is finite."""
    if not condition or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{name} must be {rule}, not {value}")
