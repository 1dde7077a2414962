"""What every model offers to training, evaluation and export."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.models.config import ModelConfig, SearchSpace
from shortlist_trainer.progress import Bar, Progress

Float32Array = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.integer]
State = dict[str, Tensor]

_SAMPLED_ERRORS = 1 << 20
"""Training errors that say how noisy ratings are."""


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


@dataclass(frozen=True)
class Ranker:
    """The network of a model whose scores are no inner product, for re-ranking what the index found.

    Attributes:
        architecture: what reads the tensors, such as "neumf".
        tensors: name to float32 tensor; docs/model-format.md says what each is.
    """

    architecture: str
    tensors: Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class FoldIn:
    """How the server computes the vector of a user whom the model has not seen, from a history of items.

    docs/model-format.md has the equations.

    Attributes:
        solver: which of them.
        unobserved_weight: implicit-least-squares: the weight of a pair without an interaction, against 1 more.
        regularization: implicit-least-squares: the weight of the vector's squared length, times what it is scaled by.
        regularization_exponent: implicit-least-squares: how that grows with the number of interactions.
        noise_variance: normal-prior: of a rating around its prediction.
    """

    solver: Literal["implicit-least-squares", "normal-prior"]
    unobserved_weight: float = 0.0
    regularization: float = 0.0
    regularization_exponent: float = 0.0
    noise_variance: float = 0.0


class Recommender(ABC):
    """Scores pairs of users and items."""

    protocol: ClassVar[Literal["rating", "full-rank"]]
    """The evaluation that suits what it predicts."""

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
        """The vectors that are published; their inner product is ``predict`` unless there is a ``ranker``."""

    def ranker(self) -> Ranker | None:
        """The network whose scores ``predict`` gives, where these are no inner product."""
        return None


@dataclass(frozen=True)
class Validation:
    """How a model under training is judged after each epoch, by interactions that it is not trained on.

    Attributes:
        metric: its name.
        higher_is_better: False for errors.
        measure: the model to the metric's value.
        every: after how many epochs, beside after the last one.
    """

    metric: str
    higher_is_better: bool
    measure: Callable[[Recommender], float]
    every: int = 1


@dataclass(frozen=True)
class Checkpoint:
    """Where a run is saved after every epoch.

    Attributes:
        path: the file.
        resume: go on from the file if it is there.
    """

    path: Path
    resume: bool = False


@dataclass(frozen=True)
class TrainingRun:
    """What a training run is given beside data and hyper-parameters.

    Attributes:
        device: where the parameters live and the work is done.
        seed: equal seeds give equal models on the CPU.
        progress: told of every step.
        mixed_precision: networks may compute in bfloat16; parameters and sums stay float32.
        validation: how the model is judged after each epoch; None not to.
        checkpoint: where the run is saved; None not to.
        last_epoch: stop after this epoch of the configured ones; None for all.
    """

    device: torch.device
    seed: int
    progress: Progress = field(default_factory=lambda: Progress("train"))
    mixed_precision: bool = False
    validation: Validation | None = None
    checkpoint: Checkpoint | None = None
    last_epoch: int | None = None

    def generator(self, *stream: int) -> torch.Generator:
        """Random numbers on the CPU that depend on nothing but the seed and the numbers of a stream.

        One for each epoch, rather than one for all, so that a resumed run draws what an unbroken one draws.
        """
        (derived,) = np.random.SeedSequence((self.seed, *stream)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(derived))


C_co = TypeVar("C_co", bound=ModelConfig, covariant=True)


class Model(Recommender, Generic[C_co]):
    """A recommender that learns by epochs and ends as one user and one item embedding.

    Args:
        config: hyper-parameters, ``for_data`` already applied.
        interactions: what it learns from.
        run: device and seed.

    Raises:
        DataError: the interactions lack what the model learns from.
    """

    name: ClassVar[str]
    """What ``--model`` calls it."""

    config_type: ClassVar[type[ModelConfig]]

    divergence_advice: ClassVar[str]
    """What to change when the loss is no longer a number."""

    search_space: ClassVar[SearchSpace]
    """What tuning tries; the sizes of what is published are its user's to choose."""

    def __init__(self, config: C_co, interactions: Interactions, run: TrainingRun) -> None:
        self.config = config
        self.interactions = interactions
        self.run = run

    def fold_in(self) -> FoldIn | None:
        """How a history becomes a user vector; None for the mean of its items' directions.

        By default ratings go by how users are spread, with the training error as their noise.
        """
        ratings = self.interactions.ratings
        if self.protocol != "rating" or ratings is None:
            return None
        every = slice(None, None, max(1, len(ratings) // _SAMPLED_ERRORS))
        errors = self.predict(self.interactions.users[every], self.interactions.items[every]) - ratings[every]
        return FoldIn("normal-prior", noise_variance=max(float(np.square(errors).mean()), 1e-6))

    @abstractmethod
    def train_epoch(self, epoch: int, bar: Bar) -> float:
        """Learns from every interaction once.

        All that is random must come from ``run.generator(epoch)``, so that a run can go on from a checkpoint.

        Args:
            epoch: 1 is the first.
            bar: advanced by ``len(interactions)`` in all; it raises ``StopRequested`` when the user wants to stop.

        Returns:
            The mean training loss, in the model's own unit.
        """

    @abstractmethod
    def state(self) -> State:
        """All that later epochs depend on: parameters and the optimiser's memory, not copied."""

    @abstractmethod
    def load_state(self, state: State) -> None:
        """Goes back to a state that this kind of model gave, on any device."""
