"""What every model offers to evaluation and export."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.progress import Progress

Float32Array = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Embeddings:
    """A trained model as vectors: what is published.

    score(u, i) = users[u] . items[i] + user_bias[u] + score_constant

    Attributes:
        users: (users, d) float32.
        items: (items, d) float32.
        user_bias: (users,) float32, or None for zeros.
        score_constant: added to every score.
        bias_columns: how many trailing columns of ``items`` are biases; they count in scores, not in the cosine
            between items.
        score_kind: whether a score is a predicted rating, or a preference of which only the order matters.
    """

    users: Float32Array
    items: Float32Array
    score_kind: Literal["rating", "preference"]
    user_bias: Float32Array | None = None
    score_constant: float = 0.0
    bias_columns: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Hyper-parameters that every model has; ``--set NAME=VALUE`` changes one."""

    embedding_size: int
    """Columns of the user and item embeddings."""

    epochs: int
    """Passes over the training interactions."""

    regularization: float
    """Weight of the squared norms of the parameters in the loss."""


@dataclass(frozen=True)
class TrainingRun:
    """What a training run is given beside data and hyper-parameters.

    Attributes:
        device: where the parameters live and the work is done.
        seed: equal seeds give equal models on the CPU.
        progress: told of every step.
    """

    device: torch.device
    seed: int
    progress: Progress


class Model(ABC):
    """A recommender that ends as one user and one item embedding."""

    name: ClassVar[str]
    """What ``--model`` calls it."""

    protocol: ClassVar[Literal["rating", "full-rank"]]
    """The evaluation that suits what it predicts."""

    config_type: ClassVar[type[ModelConfig]]

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    @classmethod
    @abstractmethod
    def fit(cls, config: ModelConfig, interactions: Interactions, run: TrainingRun) -> Self:
        """Trains a model.

        Raises:
            DataError: the interactions lack what the model learns from.
            ConfigError: a hyper-parameter is out of its range.
        """

    @abstractmethod
    def predict(self, users: RowArray, items: RowArray) -> Float32Array:
        """The model's own forward pass for pairs of rows.

        Args:
            users: (n,) user rows.
            items: (n,) item rows.

        Returns:
            (n,) scores, the j-th for the j-th pair.
        """

    @abstractmethod
    def embeddings(self) -> Embeddings:
        """The vectors whose inner product is ``predict``."""
