"""Biased matrix factorization of explicit ratings, by mini-batches.

Model: rating(u, i) = mu + b_u + b_i + p_u . q_i, mu being the mean training rating (Koren, Bell & Volinsky 2009,
"Matrix Factorization Techniques for Recommender Systems", equation 4).
Loss: squared error plus regularization * (|p_u|^2 + |q_i|^2 + b_u^2 + b_i^2), averaged over the batch.
Optimiser: Adam with decoupled weight decay; a learning rate that is constant, falls by steps or along half a cosine.
Sampling: every rating once an epoch, in a new random order; dropout leaves terms of the inner product out.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.errors import DataError
from shortlist_trainer.models.base import Embeddings, Float32Array, RowArray, TrainingRun
from shortlist_trainer.models.config import GradientConfig, Range, SearchSpace, require
from shortlist_trainer.models.gradient import GradientModel, looked_up


@dataclass(frozen=True, kw_only=True)
class MatrixFactorizationConfig(GradientConfig):
    """Hyper-parameters of ``mf``."""

    embedding_size: int = 32
    epochs: int = 30
    regularization: float = 0.12
    learning_rate: float = 0.005
    batch_size: int = 1024

    initial_scale: float = 0.05
    """Standard deviation of the embeddings' first values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.initial_scale > 0, "initial_scale", "above 0", self.initial_scale)


class BiasedFactors(nn.Module):
    """The parameters of a biased factorization.

    Args:
        interactions: whose ratings' mean is the constant of the model.
        embedding_size: d.
        initial_scale: standard deviation of the factors' first values; biases begin at zero.
        generator: draws the factors.
    """

    def __init__(
        self, interactions: Interactions, embedding_size: int, initial_scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()

        def initial(rows: int) -> nn.Parameter:
            return nn.Parameter(initial_scale * torch.randn(rows, embedding_size, generator=generator))

        assert interactions.ratings is not None
        self.mean = float(interactions.ratings.mean())
        self.user_factors = initial(interactions.user_count)  # (users, d)
        self.item_factors = initial(interactions.item_count)  # (items, d)
        self.user_bias = nn.Parameter(torch.zeros(interactions.user_count))
        self.item_bias = nn.Parameter(torch.zeros(interactions.item_count))
        # What is never trained shall predict by the mean and the other side's bias alone.
        with torch.no_grad():
            self.user_factors[np.bincount(interactions.users, minlength=interactions.user_count) == 0] = 0
            self.item_factors[np.bincount(interactions.items, minlength=interactions.item_count) == 0] = 0

    def forward(self, users: Tensor, items: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Predicted ratings (n,) and the squared norms (n,) of all parameters that took part."""
        p, q = looked_up(self.user_factors, users), looked_up(self.item_factors, items)  # (n, d) each
        user_bias, item_bias = looked_up(self.user_bias, users), looked_up(self.item_bias, items)  # (n,) each
        ratings = self.mean + user_bias + item_bias + functional.dropout(p * q, dropout, self.training).sum(1)
        return ratings, p.square().sum(1) + q.square().sum(1) + user_bias.square() + item_bias.square()

    @torch.no_grad()
    def predict(self, users: RowArray, items: RowArray) -> Float32Array:
        """(n,) predicted ratings of pairs of rows."""
        device = self.user_bias.device
        ratings, _ = self(torch.from_numpy(users).long().to(device), torch.from_numpy(items).long().to(device))
        return np.asarray(ratings.cpu().numpy(), dtype=np.float32)

    @torch.no_grad()
    def embeddings(self) -> Embeddings:
        """Items as [q_i, b_i], users as [p_u, 1], the user's own bias and mu beside them."""
        users, items = self.user_factors.cpu(), self.item_factors.cpu()
        return Embeddings(
            users=torch.cat([users, torch.ones(len(users), 1)], dim=1).numpy(),
            items=torch.cat([items, self.item_bias.cpu()[:, None]], dim=1).numpy(),
            user_bias=self.user_bias.cpu().numpy().copy(),
            score_constant=self.mean,
            bias_columns=1,
            score_kind="rating",
        )


def require_ratings(name: str, interactions: Interactions) -> Float32Array:
    """(n,) the ratings; raises DataError, with what to do, where there are none."""
    if interactions.ratings is None:
        raise DataError(
            f"{name} learns from ratings and the data has none; use --model ials, or name the rating column"
        )
    return interactions.ratings


class MatrixFactorization(GradientModel[MatrixFactorizationConfig]):
    """``mf``."""

    name = "mf"
    protocol = "rating"
    config_type = MatrixFactorizationConfig
    search_space: ClassVar[SearchSpace] = {
        "learning_rate": Range(1e-3, 2e-2, log=True),
        "regularization": Range(0.02, 0.3, log=True),
        "epochs": Range(15, 50, whole=True),
        "dropout": Range(0, 0.3),
    }

    def __init__(self, config: MatrixFactorizationConfig, interactions: Interactions, run: TrainingRun) -> None:
        super().__init__(config, interactions, run)
        self._ratings = torch.from_numpy(require_ratings(self.name, interactions)).to(run.device)
        self._factors = BiasedFactors(interactions, config.embedding_size, config.initial_scale, run.generator(0))
        self._train(self._factors)

    def loss(self, batch: Tensor) -> Tensor:
        """Squared error and squared norms of the ratings in a batch."""
        predicted, norms = self._factors(self.users[batch], self.items[batch], self.config.dropout)
        loss: Tensor = ((predicted - self._ratings[batch]).square() + self.config.regularization * norms).mean()
        return loss

    def predict(self, users: RowArray, items: RowArray) -> Float32Array:
        """Predicted ratings (n,) in the data's unit."""
        return self._factors.predict(users, items)

    def embeddings(self) -> Embeddings:
        """Items as [q_i, b_i], users as [p_u, 1], the user's own bias and mu beside them."""
        return self._factors.embeddings()
