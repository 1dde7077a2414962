"""Neural collaborative filtering of explicit ratings.

Model: rating(u, i) = mu + b_u + b_i + f([p_u; q_i]), mu being the mean training rating and f a perceptron with leaky
    ReLUs over the concatenated embeddings, which may differ in size (the MLP of He et al. 2017, "Neural Collaborative
    Filtering", equation 10, with the biases of Koren, Bell & Volinsky 2009). With no hidden layer f is linear, and the
    rating a sum of one term for the user and one for the item.
Loss: squared error plus regularization * (|p_u|^2 + |q_i|^2 + b_u^2 + b_i^2), averaged over the batch.
Optimiser: Adam with decoupled weight decay; the learning rate falls by steps unless told otherwise.
Sampling: every rating once an epoch, in a new random order; dropout leaves hidden units out.

What is published: the biases as they are, and beside them ``retrieval_size`` columns of least-squares vectors that
follow f (``low_rank``). The network itself is the ``ranker``.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.models.base import Embeddings, Float32Array, Ranker, RowArray, TrainingRun
from shortlist_trainer.models.config import GradientConfig, Range, Schedule, SearchSpace, require
from shortlist_trainer.models.gradient import GradientModel, looked_up
from shortlist_trainer.models.mf import require_ratings
from shortlist_trainer.models.perceptron import Perceptron

_SLOPE = 0.01

# Pairs scored at once: few enough that their hidden units stay in the processor's cache.
_PAIRS_AT_ONCE = 1 << 13


@dataclass(frozen=True, kw_only=True)
class RatingNetworkConfig(GradientConfig):
    """Hyper-parameters of ``ncf-rating``. ``embedding_size`` is that of users, ``dropout`` that of hidden units."""

    embedding_size: int = 10
    epochs: int = 15
    regularization: float = 0.1
    learning_rate: float = 0.005
    batch_size: int = 512
    schedule: Schedule = "step"
    weight_decay: float = 0.5
    dropout: float = 0.2

    item_embedding_size: int = 32
    """Columns of the item embeddings that the perceptron sees."""

    hidden_layers: tuple[int, ...] = (64,)
    """Units of the perceptron's layers; none for a linear model."""

    initial_scale: float = 0.05
    """Standard deviation of the embeddings' first values."""

    retrieval_size: int = 32
    """Columns of the published vectors that follow the perceptron."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.item_embedding_size >= 1, "item_embedding_size", "at least 1", self.item_embedding_size)
        require(all(units >= 1 for units in self.hidden_layers), "hidden_layers", "at least 1", self.hidden_layers)
        require(self.initial_scale > 0, "initial_scale", "above 0", self.initial_scale)
        require(self.retrieval_size >= 1, "retrieval_size", "at least 1", self.retrieval_size)


class BiasedPerceptron(nn.Module):
    """A perceptron and biases of users and items."""

    def __init__(self, config: RatingNetworkConfig, interactions: Interactions, generator: torch.Generator) -> None:
        super().__init__()
        sizes = (config.embedding_size, config.item_embedding_size)
        self.mlp = Perceptron(interactions, sizes, config.hidden_layers, _SLOPE, config.initial_scale, generator)
        self.user_bias = nn.Parameter(torch.zeros(interactions.user_count))
        self.item_bias = nn.Parameter(torch.zeros(interactions.item_count))

    def forward(self, users: Tensor, items: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
        """Ratings above the mean (b,) and the squared norms (b,) of all embeddings and biases that took part."""
        user_bias, item_bias = looked_up(self.user_bias, users), looked_up(self.item_bias, items)
        ratings = user_bias + item_bias + self.mlp(users, items[:, None], dropout)[:, 0]
        of_users, of_items = self.mlp.users.square().sum(1), self.mlp.items.square().sum(1)
        norms = looked_up(of_users, users) + looked_up(of_items, items)
        return ratings, norms + user_bias.square() + item_bias.square()


class RatingNetwork(GradientModel[RatingNetworkConfig]):
    """``ncf-rating``."""

    name = "ncf-rating"
    protocol = "rating"
    config_type = RatingNetworkConfig
    search_space: ClassVar[SearchSpace] = {
        "learning_rate": Range(3e-4, 1e-2, log=True),
        "regularization": Range(1e-2, 0.5, log=True),
        "dropout": Range(0, 0.4),
    }

    def __init__(self, config: RatingNetworkConfig, interactions: Interactions, run: TrainingRun) -> None:
        super().__init__(config, interactions, run)
        require_ratings(self.name, interactions)
        self._ratings = torch.from_numpy(interactions.ratings).to(run.device)
        self._mean = float(self._ratings.mean())
        self._ncf = BiasedPerceptron(config, interactions, run.generator(0))
        self._train(self._ncf)

    def loss(self, batch: Tensor) -> Tensor:
        """Squared error and squared norms of the ratings in a batch."""
        predicted, norms = self._ncf(self.users[batch], self.items[batch], self.config.dropout)
        error = self._mean + predicted.float() - self._ratings[batch]
        loss: Tensor = (error.square() + self.config.regularization * norms).mean()
        return loss

    def predict(self, users: RowArray, items: RowArray) -> Float32Array:
        """Predicted ratings (n,) in the data's unit."""
        ratings = np.empty(len(users), dtype=np.float32)
        mlp = self._ncf.mlp.scorer()
        user_bias, item_bias = self._ncf.user_bias.detach(), self._ncf.item_bias.detach()
        for begin in range(0, len(users), _PAIRS_AT_ONCE):
            block = slice(begin, begin + _PAIRS_AT_ONCE)
            u, i = (torch.from_numpy(rows[block]).long().to(self.run.device) for rows in (users, items))
            ratings[block] = (self._mean + user_bias[u] + item_bias[i] + mlp(u, i)).cpu().numpy()
        return ratings

    def embeddings(self) -> Embeddings:
        """The biases of the model, and in ``retrieval_size`` columns what follows the perceptron best."""
        fitted = self._ncf.mlp.fitted_vectors(self.config.retrieval_size, self.run.generator(0, 1))
        item_bias = self._ncf.item_bias.detach().cpu().numpy() + fitted.item_bias
        return Embeddings(
            users=np.column_stack([fitted.users, np.ones(len(fitted.users), np.float32)]),
            items=np.column_stack([fitted.items, item_bias]),
            user_bias=self._ncf.user_bias.detach().cpu().numpy().copy(),
            score_constant=self._mean,
            bias_columns=1,
            score_kind="rating",
        )

    def ranker(self) -> Ranker:
        """The network."""
        biases = {"user_bias": self._ncf.user_bias, "item_bias": self._ncf.item_bias}
        tensors = {name: bias.detach().cpu().numpy() for name, bias in biases.items()}
        tensors["bias"] = np.array([self._mean], dtype=np.float32)
        return Ranker("mlp", tensors | self._ncf.mlp.tensors("mlp."))
