"""Implicit-feedback alternating least squares (iALS).

Model: score(u, i) = w_u . h_i, close to 1 for items the user touched and to 0 for the others.
Loss: sum over interactions of (1 - score)^2 + alpha0 * sum over all pairs of score^2
    + regularization * (sum over u of (|S_u| + alpha0 * items)^nu |w_u|^2 + the same over i),
    S_u being the user's items (Hu, Koren & Volinsky 2008, "Collaborative Filtering for Implicit Feedback Datasets";
    weights and scaled regularisation of Rendle, Krichene, Zhang & Koren 2021, "Revisiting the Performance of iALS on
    Item Recommendation Benchmarks", equations 1 to 4).
Optimiser: exact least squares for every user with the items fixed, then the reverse; one such pair is an epoch.
Sampling: none; every pair counts, the untouched ones through one Gramian.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from shortlist_trainer.data.dataset import Int32Array, Interactions
from shortlist_trainer.errors import TrainerError
from shortlist_trainer.models.base import Embeddings, Float32Array, Model, ModelConfig, RowArray, TrainingRun
from shortlist_trainer.models.config import require

# Vectors gathered at once: 2^18 of 64 float32 columns are 64 MiB.
_GATHERED_VECTORS = 1 << 18


@dataclass(frozen=True, kw_only=True)
class ImplicitALSConfig(ModelConfig):
    """Hyper-parameters of ``ials``."""

    embedding_size: int = 64
    epochs: int = 16
    regularization: float = 0.01

    unobserved_weight: float = 0.3
    """alpha0: the weight of a pair without an interaction, one with an interaction weighing 1 more."""

    regularization_exponent: float = 1.0
    """nu: how the regularisation grows with the number of interactions; 0 for the same everywhere."""

    initial_scale: float = 0.1
    """Standard deviation of the embeddings' first norms."""

    def __post_init__(self) -> None:
        require(self.embedding_size >= 1, "embedding_size", "at least 1", self.embedding_size)
        require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        require(self.regularization > 0, "regularization", "above 0", self.regularization)
        require(self.unobserved_weight > 0, "unobserved_weight", "above 0", self.unobserved_weight)
        require(
            0 <= self.regularization_exponent <= 4, "regularization_exponent", "0 to 4", self.regularization_exponent
        )
        require(self.initial_scale > 0, "initial_scale", "above 0", self.initial_scale)


class ImplicitALS(Model):
    """A trained ``ials``."""

    name = "ials"
    protocol = "full-rank"
    config_type = ImplicitALSConfig

    def __init__(self, config: ModelConfig, users: Tensor, items: Tensor) -> None:
        super().__init__(config)
        self._users = users
        self._items = items

    @classmethod
    def fit(cls, config: ModelConfig, interactions: Interactions, run: TrainingRun) -> Self:
        """Trains by alternating exact solves; ratings are not looked at, every interaction is a positive."""
        assert isinstance(config, ImplicitALSConfig)
        device = run.device
        generator = torch.Generator().manual_seed(run.seed)
        scale = config.initial_scale / config.embedding_size**0.5
        items = (scale * torch.randn(interactions.item_count, config.embedding_size, generator=generator)).to(device)
        of_users = _Side(interactions.users, interactions.items, interactions.user_count, interactions.item_count, run)
        of_items = _Side(interactions.items, interactions.users, interactions.item_count, interactions.user_count, run)
        row_pairs = (
            torch.from_numpy(interactions.users).long().to(device),
            torch.from_numpy(interactions.items).long().to(device),
        )
        with run.progress.bar(2 * config.epochs * len(interactions), "interaction") as bar:
            users = items.new_zeros(interactions.user_count, config.embedding_size)
            for epoch in range(1, config.epochs + 1):
                # Items first in later epochs, so that the last solve is the users', as fold-in repeats it.
                if epoch > 1:
                    items = of_items.solve(users, config)
                users = of_users.solve(items, config)
                loss = _loss(users, items, *row_pairs, of_users, of_items, config)
                if not np.isfinite(loss):
                    raise TrainerError(f"the loss became {loss} in epoch {epoch}; raise regularization and start again")
                bar.advance(2 * len(interactions), epoch=epoch, loss=loss / len(interactions))
        return cls(config, users, items)

    def predict(self, users: RowArray, items: RowArray) -> Float32Array:
        """Preference scores (n,): about 1 for touched, about 0 for untouched."""
        p = self._users[torch.from_numpy(users).long().to(self._users.device)]  # (n, d)
        q = self._items[torch.from_numpy(items).long().to(self._items.device)]  # (n, d)
        return np.asarray((p * q).sum(1).cpu().numpy(), dtype=np.float32)

    def embeddings(self) -> Embeddings:
        """Users and items as they were solved; there are no biases."""
        return Embeddings(users=self._users.cpu().numpy(), items=self._items.cpu().numpy(), score_kind="preference")


class _Side:
    """The least-squares problems of all rows of one side, grouped by length so that each group is one batch."""

    def __init__(
        self, rows: Int32Array, others: Int32Array, row_count: int, other_count: int, run: TrainingRun
    ) -> None:
        self.row_count = row_count
        self.other_count = other_count
        lengths = np.bincount(rows, minlength=row_count)
        self.lengths = torch.from_numpy(lengths).to(run.device)  # (row_count,)
        by_row = others[np.argsort(rows, kind="stable")]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        shortest_first = np.argsort(lengths, kind="stable")
        shortest_first = shortest_first[lengths[shortest_first] > 0]  # the rest stay zero
        self._groups: list[tuple[Tensor, Tensor]] = []
        while len(shortest_first):
            # As many rows as fit the budget when padded to the longest of them.
            padded = lengths[shortest_first] * np.arange(1, len(shortest_first) + 1)
            size = max(1, int(np.searchsorted(padded, _GATHERED_VECTORS, side="right")))
            group, shortest_first = shortest_first[:size], shortest_first[size:]
            columns = np.arange(lengths[group[-1]])
            positions = np.minimum(starts[group][:, None] + columns, len(by_row) - 1)
            # other_count is the number of a row of zeros, the padding.
            neighbours = np.where(columns < lengths[group][:, None], by_row[positions], other_count)
            self._groups.append(
                (torch.from_numpy(group).to(run.device), torch.from_numpy(neighbours.astype(np.int64)).to(run.device))
            )

    def regularization(self, config: ImplicitALSConfig) -> Tensor:
        """(row_count,) the weight of each row's squared norm."""
        touched_and_not = self.lengths + config.unobserved_weight * self.other_count
        return (config.regularization * touched_and_not**config.regularization_exponent).float()

    def solve(self, others: Tensor, config: ImplicitALSConfig) -> Tensor:
        """The rows (row_count, d) that minimise the loss while ``others`` (other_count, d) stay fixed."""
        size = others.shape[1]
        gramian = config.unobserved_weight * (others.T @ others)  # (d, d): every pair
        padded = torch.cat([others, others.new_zeros(1, size)])
        regularization = self.regularization(config)
        identity = torch.eye(size, device=others.device)
        solved = others.new_zeros(self.row_count, size)
        for group, neighbours in self._groups:
            touched = padded[neighbours]  # (b, longest, d)
            left = touched.transpose(1, 2) @ touched + gramian + regularization[group, None, None] * identity
            right = touched.sum(1)  # (b, d)
            solved[group] = torch.cholesky_solve(right[..., None], torch.linalg.cholesky(left))[..., 0]
        return solved


def _loss(
    users: Tensor,
    items: Tensor,
    user_rows: Tensor,
    item_rows: Tensor,
    of_users: _Side,
    of_items: _Side,
    config: ImplicitALSConfig,
) -> float:
    touched = users.new_zeros(())
    for u, i in zip(torch.split(user_rows, _GATHERED_VECTORS), torch.split(item_rows, _GATHERED_VECTORS), strict=True):
        touched += (1 - (users[u] * items[i]).sum(1)).square().sum()
    everything = ((users.T @ users) * (items.T @ items)).sum()
    norms = (of_users.regularization(config) * users.square().sum(1)).sum() + (
        of_items.regularization(config) * items.square().sum(1)
    ).sum()
    return float(touched + config.unobserved_weight * everything + norms)
