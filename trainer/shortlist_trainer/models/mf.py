"""Biased matrix factorization of explicit ratings, by mini-batches.

Model: rating(u, i) = mu + b_u + b_i + p_u . q_i, mu being the mean training rating (Koren, Bell & Volinsky 2009,
"Matrix Factorization Techniques for Recommender Systems", equation 4).
Loss: squared error plus regularization * (|p_u|^2 + |q_i|^2 + b_u^2 + b_i^2), averaged over the batch.
Optimiser: Adam, its learning rate falling to zero along a half cosine.
Sampling: every rating once an epoch, in a new random order.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.errors import DataError, TrainerError
from shortlist_trainer.models.base import Embeddings, Float32Array, Model, ModelConfig, RowArray, TrainingRun
from shortlist_trainer.models.config import require


@dataclass(frozen=True, kw_only=True)
class MatrixFactorizationConfig(ModelConfig):
    """Hyper-parameters of ``mf``."""

    embedding_size: int = 32
    epochs: int = 30
    regularization: float = 0.12

    learning_rate: float = 0.005
    """Adam's step size in the first epoch."""

    batch_size: int = 1024
    """Ratings in one step of the optimiser."""

    initial_scale: float = 0.05
    """Standard deviation of the embeddings' first values."""

    def __post_init__(self) -> None:
        require(self.embedding_size >= 1, "embedding_size", "at least 1", self.embedding_size)
        require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        require(self.regularization >= 0, "regularization", "at least 0", self.regularization)
        require(self.learning_rate > 0, "learning_rate", "above 0", self.learning_rate)
        require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        require(self.initial_scale > 0, "initial_scale", "above 0", self.initial_scale)


class _Parameters(nn.Module):
    def __init__(self, interactions: Interactions, mean: float, config: MatrixFactorizationConfig, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def initial(rows: int) -> nn.Parameter:
            return nn.Parameter(config.initial_scale * torch.randn(rows, config.embedding_size, generator=generator))

        self.mean = mean
        self.user_factors = initial(interactions.user_count)  # (users, d)
        self.item_factors = initial(interactions.item_count)  # (items, d)
        self.user_bias = nn.Parameter(torch.zeros(interactions.user_count))
        self.item_bias = nn.Parameter(torch.zeros(interactions.item_count))

    def forward(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted ratings (n,) and the squared norms (n,) of all parameters that took part."""
        p, q = self.user_factors[users], self.item_factors[items]  # (n, d) each
        user_bias, item_bias = self.user_bias[users], self.item_bias[items]  # (n,) each
        ratings = self.mean + user_bias + item_bias + (p * q).sum(1)
        return ratings, p.square().sum(1) + q.square().sum(1) + user_bias.square() + item_bias.square()


class MatrixFactorization(Model):
    """A trained ``mf``."""

    name = "mf"
    protocol = "rating"
    config_type = MatrixFactorizationConfig

    def __init__(self, config: ModelConfig, parameters: _Parameters) -> None:
        super().__init__(config)
        self._parameters = parameters

    @classmethod
    def fit(cls, config: ModelConfig, interactions: Interactions, run: TrainingRun) -> Self:
        """Trains by mini-batch Adam; users and items without ratings end with zero embeddings."""
        assert isinstance(config, MatrixFactorizationConfig)
        if interactions.ratings is None:
            raise DataError("mf learns from ratings and the data has none; use --model ials, or name the rating column")
        device = run.device
        users = torch.from_numpy(interactions.users).long().to(device)
        items = torch.from_numpy(interactions.items).long().to(device)
        ratings = torch.from_numpy(interactions.ratings).to(device)
        count = len(interactions)

        parameters = _Parameters(interactions, float(interactions.ratings.mean()), config, run.seed).to(device)
        optimizer = torch.optim.Adam(parameters.parameters(), lr=config.learning_rate)
        steps = config.epochs * -(-count // config.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        order_generator = torch.Generator().manual_seed(run.seed + 1)
        with run.progress.bar(config.epochs * count, "rating") as bar:
            for epoch in range(1, config.epochs + 1):
                order = torch.randperm(count, generator=order_generator).to(device)
                for batch in torch.split(order, config.batch_size):
                    predicted, norms = parameters(users[batch], items[batch])
                    loss = ((predicted - ratings[batch]).square() + config.regularization * norms).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    bar.advance(len(batch), epoch=epoch, loss=(value := loss.item()))
                if not np.isfinite(value):
                    raise TrainerError(f"the loss became {value} in epoch {epoch}; lower learning_rate and start again")
        with torch.no_grad():  # what was never trained predicts by the mean and the other side's bias alone
            parameters.user_factors[users.bincount(minlength=interactions.user_count) == 0] = 0
            parameters.item_factors[items.bincount(minlength=interactions.item_count) == 0] = 0
        return cls(config, parameters)

    @torch.no_grad()
    def predict(self, users: RowArray, items: RowArray) -> Float32Array:
        """Predicted ratings (n,) in the data's unit."""
        device = self._parameters.user_bias.device
        ratings, _ = self._parameters(
            torch.from_numpy(users).long().to(device), torch.from_numpy(items).long().to(device)
        )
        return np.asarray(ratings.cpu().numpy(), dtype=np.float32)

    @torch.no_grad()
    def embeddings(self) -> Embeddings:
        """Items as [q_i, b_i], users as [p_u, 1], the user's own bias and mu beside them."""
        model = self._parameters.cpu()
        return Embeddings(
            users=torch.cat([model.user_factors, torch.ones(len(model.user_factors), 1)], dim=1).numpy(),
            items=torch.cat([model.item_factors, model.item_bias[:, None]], dim=1).numpy(),
            user_bias=model.user_bias.numpy(),
            score_constant=model.mean,
            bias_columns=1,
            score_kind="rating",
        )
