"""Implicit-feedback alternating least squares (iALS).

Model: score(u, i) = w_u . h_i, close to 1 for items the user touched and to 0 for the others.
Loss: sum over interactions of (1 - score)^2 + alpha0 * sum over all pairs of score^2
    + regularization * (sum over u of (|S_u| + alpha0 * items)^nu |w_u|^2 + the same over i),
    S_u being the user's items (Hu, Koren & Volinsky 2008, "Collaborative Filtering for Implicit Feedback Datasets";
    weights and scaled regularisation of Rendle, Krichene, Zhang & Koren 2021, "Revisiting the Performance of iALS on
    Item Recommendation Benchmarks", equations 1 to 4).
Optimiser: least squares for every user with the items fixed, then the reverse; one such pair is an epoch. On the CPU
    each problem takes some conjugate-gradient steps from where the last epoch left it (Takács, Pilászy & Tikk 2011);
    on a GPU, whose batched Cholesky factorisations are fast, it is solved exactly. What is published are the users
    solved to the end for the last items.
Sampling: none; every pair counts, the untouched ones through one Gramian.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.models.base import Embeddings, Float32Array, FoldIn, Model, RowArray, State, TrainingRun
from shortlist_trainer.models.config import ModelConfig, Range, SearchSpace, require
from shortlist_trainer.models.conjugate_gradient import improve_rows
from shortlist_trainer.models.rows import Rows, both_sides
from shortlist_trainer.progress import Bar

_UNOBSERVED_TO_OBSERVED = 7.0
"""The default weight of all unobserved pairs together, against 1 for all interactions. The best weights published
(Rendle et al. 2021) come to 6.7 on ML-1M, 2.6 on Pinterest and 28 on ML-20M, while alpha0 itself spans .007 to .3."""

_MEAN_REGULARIZATION = 6.5
"""The default regularisation of a user with the mean number of interactions. On holdouts of ML-1M, of ML-100K and of a
sparse part of ML-1M with 26 interactions a user the best lay between 5 and 9, while lambda itself spanned .004 to .03;
the best published (Rendle et al. 2021) come to 2 on Pinterest and 6 on ML-20M."""

_LAST_STEPS = 8
"""Conjugate-gradient steps from where an epoch left the users to their exact vectors, which fold-in gives too. With the
epoch's 3 alone a coordinate is off by .0015 at most on ML-1M; with these as well by .000004."""


@dataclass(frozen=True, kw_only=True)
class ImplicitALSConfig(ModelConfig):
    """Hyper-parameters of ``ials``."""

    embedding_size: int = 64
    epochs: int = 16
    regularization: float = 0.0
    """Weight of the squared norms, times what they are scaled by; 0 for what makes the mean user's weight 6.5."""

    unobserved_weight: float = 0.0
    """alpha0: the weight of a pair without an interaction, one with an interaction weighing 1 more; 0 for 7 times the
    share of pairs that have one."""

    regularization_exponent: float = 1.0
    """nu: how the regularisation grows with the number of interactions; 0 for the same everywhere."""

    initial_scale: float = 0.1
    """Standard deviation of the embeddings' first norms."""

    solver: Literal["auto", "cholesky", "conjugate-gradient"] = "auto"
    """How each least-squares problem is solved: exactly, or by some steps towards it; auto is the first on a GPU and
    the second on the CPU."""

    solver_steps: int = 3
    """Conjugate-gradient steps in one epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.unobserved_weight >= 0, "unobserved_weight", "at least 0", self.unobserved_weight)
        require(
            0 <= self.regularization_exponent <= 4, "regularization_exponent", "0 to 4", self.regularization_exponent
        )
        require(self.initial_scale > 0, "initial_scale", "above 0", self.initial_scale)
        require(self.solver_steps >= 1, "solver_steps", "at least 1", self.solver_steps)

    def for_data(self, interactions: Interactions) -> Self:
        """The same with regularization and the weight of unobserved pairs filled in."""
        filled = self
        if filled.unobserved_weight == 0:
            density = len(interactions) / (interactions.user_count * interactions.item_count)
            filled = replace(filled, unobserved_weight=_UNOBSERVED_TO_OBSERVED * density)
        if filled.regularization == 0:
            per_user = len(interactions) / interactions.user_count
            scale = (per_user + filled.unobserved_weight * interactions.item_count) ** filled.regularization_exponent
            filled = replace(filled, regularization=_MEAN_REGULARIZATION / scale)
        return filled


class ImplicitALS(Model[ImplicitALSConfig]):
    """``ials``. Ratings are not looked at: every interaction is a positive."""

    name = "ials"
    protocol = "full-rank"
    config_type = ImplicitALSConfig
    divergence_advice = "raise regularization"
    search_space: ClassVar[SearchSpace] = {
        "regularization": Range(1e-3, 1e-1, log=True),
        "unobserved_weight": Range(1e-3, 1, log=True),
        "epochs": Range(6, 24, whole=True),
    }

    def __init__(self, config: ImplicitALSConfig, interactions: Interactions, run: TrainingRun) -> None:
        super().__init__(config, interactions, run)
        scale = config.initial_scale / config.embedding_size**0.5
        items = torch.randn(interactions.item_count, config.embedding_size, generator=run.generator(0))
        self._items = (scale * items).to(run.device)
        self._users = self._items.new_zeros(interactions.user_count, config.embedding_size)
        of_users, of_items = both_sides(interactions)
        exactly = config.solver == "cholesky" or (config.solver == "auto" and run.device.type != "cpu")
        solver = _ExactSide if exactly else _StepwiseSide
        self._of_users, self._of_items = solver(of_users, config, run), solver(of_items, config, run)
        self._solved_users: Tensor | None = None

    def train_epoch(self, epoch: int, bar: Bar) -> float:
        """One pass over the users and one over the items."""
        # Items first in later epochs, so that the last solve is the users', as fold-in repeats it.
        if epoch > 1:
            self._items, _ = self._of_items.solve(self._items, self._users)
        self._users, objective = self._of_users.solve(self._users, self._items)
        self._solved_users = None
        loss = (objective + self._of_items.norms(self._items)) / len(self.interactions)
        bar.advance(len(self.interactions), epoch=epoch, loss=loss)
        return loss

    def state(self) -> State:
        """Both tables."""
        return {"users": self._users, "items": self._items}

    def load_state(self, state: State) -> None:
        """Puts both tables back."""
        self._users, self._items = (state[name].to(self.run.device) for name in ("users", "items"))
        self._solved_users = None

    def predict(self, users: RowArray, items: RowArray) -> Float32Array:
        """Preference scores (n,): about 1 for touched, about 0 for untouched."""
        p = self._users_for_items()[torch.from_numpy(users).long().to(self._users.device)]  # (n, d)
        q = self._items[torch.from_numpy(items).long().to(self._items.device)]  # (n, d)
        return np.asarray((p * q).sum(1).cpu().numpy(), dtype=np.float32)

    def embeddings(self) -> Embeddings:
        """The items, and the users solved for them to the end; there are no biases."""
        users = self._users_for_items()
        return Embeddings(users=users.cpu().numpy(), items=self._items.cpu().numpy(), score_kind="preference")

    def fold_in(self) -> FoldIn:
        """The problem that every user's vector was solved from."""
        config = self.config
        return FoldIn(
            "implicit-least-squares",
            unobserved_weight=config.unobserved_weight,
            regularization=config.regularization,
            regularization_exponent=config.regularization_exponent,
        )

    def _users_for_items(self) -> Tensor:
        """The users (users, d) that a fold-in of their own histories gives; training goes on from those it left."""
        if self._solved_users is None:
            self._solved_users = self._of_users.solve_to_the_end(self._users, self._items)
        return self._solved_users


class _Side:
    """The least-squares problems of all rows of one side."""

    def __init__(self, rows: Rows, config: ImplicitALSConfig, run: TrainingRun) -> None:
        self._rows = rows
        self._unobserved_weight = config.unobserved_weight
        touched_and_not = rows.lengths + config.unobserved_weight * rows.other_count
        weights = config.regularization * touched_and_not**config.regularization_exponent
        self._regularization = torch.from_numpy(weights.astype(np.float32)).to(run.device)  # (row_count,)

    def solve(self, before: Tensor, others: Tensor) -> tuple[Tensor, float]:
        """The rows (row_count, d) at or nearer to the minimum of the loss while ``others`` (other_count, d) are fixed.

        Args:
            before: (row_count, d) where they are now.
            others: (other_count, d).

        Returns:
            The rows, and the loss but for the regularisation of the others.
        """
        raise NotImplementedError

    def solve_to_the_end(self, solved: Tensor, others: Tensor) -> Tensor:  # noqa: ARG002 # for those who are there
        """The rows (row_count, d) at the minimum, from where ``solve`` brought them."""
        return solved

    def norms(self, vectors: Tensor) -> float:
        """The regularisation's part of the loss."""
        return float((self._regularization * vectors.square().sum(1)).sum())


class _StepwiseSide(_Side):
    """By conjugate gradients on the CPU."""

    def __init__(self, rows: Rows, config: ImplicitALSConfig, run: TrainingRun) -> None:
        super().__init__(rows, config, run)
        self._steps = config.solver_steps

    def solve(self, before: Tensor, others: Tensor) -> tuple[Tensor, float]:
        return self._improve(before, others, self._steps)

    def solve_to_the_end(self, solved: Tensor, others: Tensor) -> Tensor:
        return self._improve(solved, others, _LAST_STEPS)[0]

    def _improve(self, before: Tensor, others: Tensor, steps: int) -> tuple[Tensor, float]:
        after = before.cpu().clone()
        others = others.cpu()
        objective = improve_rows(
            after.numpy(),
            others.numpy(),
            self._rows.offsets,
            self._rows.others,
            self._rows.longest_first,
            (self._unobserved_weight * (others.T @ others)).numpy(),
            self._regularization.cpu().numpy(),
            steps,
        )
        return after.to(before.device), objective


class _ExactSide(_Side):
    """By batched Cholesky factorisations."""

    def __init__(self, rows: Rows, config: ImplicitALSConfig, run: TrainingRun) -> None:
        super().__init__(rows, config, run)
        self._batches = rows.batches(run.device)

    def solve(self, before: Tensor, others: Tensor) -> tuple[Tensor, float]:
        size = others.shape[1]
        gramian = self._unobserved_weight * (others.T @ others)  # (d, d): every pair
        padded = torch.cat([others, others.new_zeros(1, size)])
        identity = torch.eye(size, device=others.device)
        solved = torch.zeros_like(before)
        explained = before.new_zeros(())
        for batch in self._batches:
            touched = padded.index_select(0, batch.others.view(-1)).view(*batch.others.shape, size)  # (b, longest, d)
            alone = gramian + self._regularization[batch.rows, None, None] * identity
            left = torch.baddbmm(alone, touched.transpose(1, 2), touched)  # (b, d, d)
            right = touched.sum(1)  # (b, d)
            rows = torch.cholesky_solve(right[..., None], torch.linalg.cholesky(left))[..., 0]
            solved[batch.rows] = rows
            explained += (rows * right).sum()
        # At the minimum, where A w = b, a row's part of the loss is |S| - w.b.
        return solved, float(self._rows.lengths.sum() - explained)
