"""Biased matrix factorization of explicit ratings, by full-batch gradient descent over the sparse rating matrix.

Model: rating(u, i) = mu + b_u + b_i + p_u . q_i, as ``mf``.
Loss: that of ``mf``: the mean over all ratings of the squared error plus regularization * (|p_u|^2 + |q_i|^2 + b_u^2
    + b_i^2).
Optimiser: Adam on the exact gradient, one step an epoch. With E the sparse matrix of errors, P and Q the factors, the
    gradient of P is 2/n (E Q + regularization * counts * P), so that a step is two products of a sparse with a dense
    matrix and never makes anything of the size users * items.
Sampling: none; every rating counts in every step.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.models.base import Embeddings, Float32Array, RowArray, TrainingRun
from shortlist_trainer.models.config import AdamConfig, Range, SearchSpace, require
from shortlist_trainer.models.gradient import AdamModel
from shortlist_trainer.models.mf import BiasedFactors, require_ratings
from shortlist_trainer.progress import Bar


@dataclass(frozen=True, kw_only=True)
class FullBatchConfig(AdamConfig):
    """Hyper-parameters of ``mf-fullbatch``."""

    embedding_size: int = 32
    epochs: int = 400
    regularization: float = 0.12
    learning_rate: float = 0.02

    initial_scale: float = 0.05
    """Standard deviation of the embeddings' first values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.initial_scale > 0, "initial_scale", "above 0", self.initial_scale)


class FullBatchMF(AdamModel[FullBatchConfig]):
    """``mf-fullbatch``."""

    name = "mf-fullbatch"
    protocol = "rating"
    config_type = FullBatchConfig
    search_space: ClassVar[SearchSpace] = {
        "learning_rate": Range(5e-3, 1e-1, log=True),
        "regularization": Range(0.02, 0.3, log=True),
        "epochs": Range(200, 800, whole=True),
    }

    def __init__(self, config: FullBatchConfig, interactions: Interactions, run: TrainingRun) -> None:
        super().__init__(config, interactions, run)
        self._ratings = torch.from_numpy(require_ratings(self.name, interactions)).to(run.device)
        self._factors = BiasedFactors(interactions, config.embedding_size, config.initial_scale, run.generator(0))
        users, items = interactions.user_count, interactions.item_count
        # Interactions are ordered by user: as they stand for E, in the order of items for its transpose.
        self._by_item = torch.argsort(self.items, stable=True)
        self._indices = torch.stack([self.users, self.items])
        self._indices_transposed = torch.stack([self.items[self._by_item], self.users[self._by_item]])
        self._user_counts = torch.bincount(self.users, minlength=users)
        self._item_counts = torch.bincount(self.items, minlength=items)
        self._train(self._factors)

    @torch.no_grad()
    def train_epoch(self, epoch: int, bar: Bar) -> float:
        """One step along the exact gradient."""
        factors, count = self._factors, len(self.interactions)
        predicted, norms = factors(self.users, self.items)
        errors = predicted - self._ratings
        loss = float((errors.square() + self.config.regularization * norms).mean())
        e = self._sparse(self._indices, errors, self.interactions.user_count, self.interactions.item_count)
        e_transposed = self._sparse(
            self._indices_transposed,
            errors[self._by_item],
            self.interactions.item_count,
            self.interactions.user_count,
        )
        p, q = factors.user_factors, factors.item_factors
        for matrix, counts, own, other, bias in (
            (e, self._user_counts, p, q, factors.user_bias),
            (e_transposed, self._item_counts, q, p, factors.item_bias),
        ):
            own.grad = 2 / count * (matrix @ other + self.config.regularization * counts[:, None] * own)
            row_sums = (matrix @ other.new_ones(len(other), 1))[:, 0]
            bias.grad = 2 / count * (row_sums + self.config.regularization * counts * bias)
        self._set_learning_rate(epoch - 1)
        self._optimizer.step()
        bar.advance(count, epoch=epoch, loss=loss)
        return loss

    def predict(self, users: RowArray, items: RowArray) -> Float32Array:
        """Predicted ratings (n,) in the data's unit."""
        return self._factors.predict(users, items)

    def embeddings(self) -> Embeddings:
        """Items as [q_i, b_i], users as [p_u, 1], the user's own bias and mu beside them."""
        return self._factors.embeddings()

    @staticmethod
    def _sparse(indices: Tensor, values: Tensor, rows: int, columns: int) -> Tensor:
        # The indices are unique and in order as they were made, which spares torch from sorting and checking them.
        return torch.sparse_coo_tensor(indices, values, (rows, columns), is_coalesced=True, check_invariants=False)
