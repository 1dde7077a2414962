"""SVD++ for explicit ratings, sampled by Gibbs instead of fitted: a mean over many models, still one inner product.

Model: rating(u, i) = mu + b_u + b_i + p_u . q_i. As in SVD++ (Koren 2008, "Factorization Meets the Neighborhood",
equation 15) a user's vector has a part that comes from which items the user rated, |N(u)|^-1/2 * sum over j in N(u) of
y_j; here so has an item's vector, from which users rated it. Both parts are the mean of a normal prior, and mean,
covariance and the y are sampled along with everything else (priors with a linear link: Simm et al. 2017, "Macau:
Scalable Bayesian Factorization with High-Dimensional Side Information").
Loss: none is minimised; ratings have normal noise whose precision is sampled too, and what is reported is the squared
error of the present sample.
Optimiser: Gibbs sampling, users and items in turn (Salakhutdinov & Mnih 2008, "Bayesian Probabilistic Matrix
Factorization using Markov Chain Monte Carlo"); an epoch is one sweep over all parameters. The prediction is the mean
over the sweeps after ``burn_in``. A sum of inner products is the inner product of all samples side by side; a truncated
singular value decomposition keeps its ``embedding_size`` strongest directions, which is what is published.
Sampling: every rating in every sweep. Runs on the CPU, whatever the device.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.models.base import Embeddings, Float32Array, Model, RowArray, State, TrainingRun
from shortlist_trainer.models.config import ModelConfig, Range, SearchSpace, require
from shortlist_trainer.models.gibbs import sample_rows, sum_rows
from shortlist_trainer.models.mf import require_ratings
from shortlist_trainer.models.rows import Rows, both_sides
from shortlist_trainer.progress import Bar

_LINK_STEPS = 6
"""Conjugate-gradient steps for the y of one side: the strong directions are exact by then, and in the weak ones the
prior decides. Thirty steps gave the same error on a holdout of ML-100K."""

_PENDING_COLUMNS = 256
"""How many columns of samples are gathered before they are merged into the running sum."""


@dataclass(frozen=True, kw_only=True)
class SVDppConfig(ModelConfig):
    """Hyper-parameters of ``svdpp``."""

    embedding_size: int = 64
    epochs: int = 150
    regularization: float = 1.0
    """Scale of the Wishart prior of each side's precision; the data soon outweigh it."""

    factors: int = 16
    """Columns of one sample's embeddings."""

    burn_in: int = 40
    """Sweeps before the first whose sample counts."""

    initial_scale: float = 0.1
    """Standard deviation of the embeddings' first values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.regularization > 0, "regularization", "above 0", self.regularization)
        require(self.factors >= 1, "factors", "at least 1", self.factors)
        require(0 <= self.burn_in < self.epochs, "burn_in", "at least 0, below epochs", self.burn_in)
        require(self.initial_scale > 0, "initial_scale", "above 0", self.initial_scale)


class SVDpp(Model[SVDppConfig]):
    """``svdpp``."""

    name = "svdpp"
    protocol = "rating"
    config_type = SVDppConfig
    divergence_advice = "look for ratings far out of the ordinary range"
    search_space: ClassVar[SearchSpace] = {
        "factors": Range(8, 48, log=True, whole=True),
        "regularization": Range(0.1, 10, log=True),
    }

    def __init__(self, config: SVDppConfig, interactions: Interactions, run: TrainingRun) -> None:
        super().__init__(config, interactions, run)
        ratings = require_ratings(self.name, interactions)
        self._mean = float(ratings.mean())
        rng = np.random.default_rng((run.seed, 0))
        centred = ratings - np.float32(self._mean)
        users, items = both_sides(interactions)
        self._users, self._items = _Side(users, items, centred, config, rng), _Side(items, users, centred, config, rng)
        self._noise_precision = np.float32(1 / max(float(centred.var()), 1e-6))
        self._sum = _RunningSum(interactions.user_count, interactions.item_count, 2 * config.embedding_size)
        self._embeddings: Embeddings | None = None

    def train_epoch(self, epoch: int, bar: Bar) -> float:
        """One Gibbs sweep."""
        rng = np.random.default_rng((self.run.seed, epoch))
        users, items = self._users, self._items
        users.sample_prior(rng)
        users.sample_rows(items, self._noise_precision, rng)
        items.sample_prior(rng)
        error = items.sample_rows(users, self._noise_precision, rng)
        count = len(self.interactions)
        self._noise_precision = np.float32(rng.gamma(1 + count / 2, 1 / (1 + error / 2)))
        if epoch > self.config.burn_in:
            self._sum.add(users, items)
        self._embeddings = None
        bar.advance(count, epoch=epoch, loss=error / count)
        return error / count

    def state(self) -> State:
        """The present sample, and the sum of those before."""
        state = self._sum.state()
        for name, side in (("users", self._users), ("items", self._items)):
            state |= {f"{name}.{part}": tensor for part, tensor in side.state().items()}
        return state | {"noise_precision": torch.tensor([self._noise_precision])}

    def load_state(self, state: State) -> None:
        """Puts sample and sum back."""
        self._sum.load_state(state)
        for name, side in (("users", self._users), ("items", self._items)):
            side.load_state({part.removeprefix(f"{name}."): state[part] for part in state if part.startswith(name)})
        self._noise_precision = np.float32(state["noise_precision"].item())
        self._embeddings = None

    def predict(self, users: RowArray, items: RowArray) -> Float32Array:
        """Predicted ratings (n,) in the data's unit, by the published vectors."""
        vectors = self.embeddings()
        assert vectors.user_bias is not None
        products = np.einsum("nd,nd->n", vectors.users[users], vectors.items[items])
        return np.asarray(products + vectors.user_bias[users] + np.float32(vectors.score_constant), dtype=np.float32)

    def embeddings(self) -> Embeddings:
        """The mean over the samples, or the present one within the burn-in: items as [q_i, b_i], users as [p_u, 1]."""
        if self._embeddings is None:
            total = self._sum
            if total.samples == 0:
                total = _RunningSum(len(self._users.vectors), len(self._items.vectors), 2 * self.config.embedding_size)
                total.add(self._users, self._items)
            users, items = total.mean(self.config.embedding_size)
            self._embeddings = Embeddings(
                users=np.hstack([users, np.ones((len(users), 1), dtype=np.float32)]),
                items=np.hstack([items, total.item_bias[:, None] / np.float32(total.samples)]),
                user_bias=total.user_bias / np.float32(total.samples),
                score_constant=self._mean,
                bias_columns=1,
                score_kind="rating",
            )
        return self._embeddings


class _Side:
    """One side's part of a sample: vectors [p, b] of all rows, and the normal prior they come from.

    Attributes:
        vectors: (n, d + 1) float32, the last column being the bias.
        known: (n,) whether a row has ratings.
    """

    def __init__(
        self, rows: Rows, others: Rows, ratings: Float32Array, config: SVDppConfig, rng: np.random.Generator
    ) -> None:
        size = config.factors + 1
        self._rows, self._others = rows, others
        self._ratings = rows.in_order(ratings)
        self._scale = config.regularization
        self.known = rows.lengths > 0
        self.vectors = config.initial_scale * rng.standard_normal((rows.row_count, size), dtype=np.float32)
        self.vectors[:, -1] = 0
        # The y: one vector for each row of the other side.
        self._links = np.zeros((rows.other_count, size), dtype=np.float32)
        self._link_precision = 1.0
        self._share = (1 / np.sqrt(np.maximum(rows.lengths, 1))).astype(np.float32)  # |N|^-1/2
        self._mean = np.zeros(size, dtype=np.float32)
        self._precision = np.eye(size, dtype=np.float32)

    def state(self) -> State:
        """All that the next sweep depends on."""
        return {
            "vectors": torch.from_numpy(self.vectors),
            "links": torch.from_numpy(self._links),
            "link_precision": torch.tensor([self._link_precision], dtype=torch.float64),
        }

    def load_state(self, state: State) -> None:
        """Puts it back."""
        self.vectors, self._links = state["vectors"].numpy().copy(), state["links"].numpy().copy()
        self._link_precision = float(state["link_precision"].item())

    def sample_prior(self, rng: np.random.Generator) -> None:
        """Draws mean, precision and links given the vectors."""
        count, size = self.vectors.shape
        linked = len(self._links)
        left = (self.vectors - self._by_links(self._links)).astype(np.float64)
        mean = left.mean(axis=0)
        scatter = (left - mean).T @ (left - mean)
        # Normal-Wishart with two pseudo-observations of 0 (Salakhutdinov & Mnih 2008, equation 14), the links being
        # further observations of the precision (Simm et al. 2017).
        links = self._links.astype(np.float64)
        pull = 2 * count / (2 + count) * np.outer(mean, mean)
        inverse_scale = self._scale * np.eye(size) + scatter + pull + self._link_precision * links.T @ links
        precision = _wishart(np.linalg.inv(inverse_scale), size + count + linked, rng)
        root = np.linalg.cholesky(precision)

        def noise(rows: int) -> Float32Array:  # (rows, size) from N(0, precision^-1)
            drawn = np.linalg.solve(root.T, rng.standard_normal((size, rows)))
            return np.ascontiguousarray(drawn.T, dtype=np.float32)

        self._precision = precision.astype(np.float32)
        self._mean = (mean * count / (2 + count) + noise(1)[0] / np.sqrt(2 + count)).astype(np.float32)
        right = self._to_links(self.vectors - self._mean + noise(count))
        right += np.float32(np.sqrt(self._link_precision)) * noise(linked)
        self._links = self._solve_links(right)
        weight = np.einsum("nk,kl,nl->", self._links, self._precision, self._links, optimize=True)
        self._link_precision = rng.gamma(1 + linked * size / 2, 1 / (1 + float(weight) / 2))

    def sample_rows(self, others: "_Side", noise_precision: np.float32, rng: np.random.Generator) -> float:
        """Draws the vectors given the prior and the other side; returns the squared error of all ratings."""
        prior_means: Float32Array = self._mean + self._by_links(self._links)
        features = others.vectors.copy()
        features[:, -1] = 1  # what the bias is multiplied by
        return sample_rows(
            self.vectors,
            features,
            np.ascontiguousarray(others.vectors[:, -1]),
            self._rows,
            self._ratings,
            np.asarray(prior_means @ self._precision, dtype=np.float32),
            self._precision,
            noise_precision,
            rng.standard_normal(self.vectors.shape, dtype=np.float32),
        )

    def _by_links(self, links: Float32Array) -> Float32Array:
        """(n, size) |N|^-1/2 times the sum of the links of each row's N."""
        return sum_rows(self._rows, links) * self._share[:, None]

    def _to_links(self, vectors: Float32Array) -> Float32Array:
        """(m, size) the transpose of ``_by_links``."""
        return sum_rows(self._others, vectors * self._share[:, None])

    def _solve_links(self, right: Float32Array) -> Float32Array:
        """Some conjugate-gradient steps towards (F'F + link_precision) links = right, F being ``_by_links``."""
        solved = self._links.copy()
        weight = np.float32(self._link_precision)
        residual = right - self._to_links(self._by_links(solved)) - weight * solved
        direction = residual
        square = np.square(residual).sum(axis=0)
        for _ in range(_LINK_STEPS):
            image = self._to_links(self._by_links(direction)) + weight * direction
            stride = square / np.maximum((direction * image).sum(axis=0), np.float32(1e-30))
            solved += stride * direction
            residual = residual - stride * image
            before, square = square, np.square(residual).sum(axis=0)
            direction = residual + square / np.maximum(before, np.float32(1e-30)) * direction
        return solved


class _RunningSum:
    """The sum of the samples' inner products as one inner product of few columns, and of their biases.

    Args:
        users: rows of the user table.
        items: rows of the item table.
        rank: columns that are kept between merges.
    """

    def __init__(self, users: int, items: int, rank: int) -> None:
        self.samples = 0
        self.user_bias = np.zeros(users, dtype=np.float32)
        self.item_bias = np.zeros(items, dtype=np.float32)
        self._rank = rank
        self._users = np.zeros((users, 0), dtype=np.float32)
        self._items = np.zeros((items, 0), dtype=np.float32)

    def add(self, users: _Side, items: _Side) -> None:
        """Adds the present sample; rows without ratings stay zero, so that mean and other side's bias decide."""
        self.samples += 1
        p, q = users.vectors * users.known[:, None], items.vectors * items.known[:, None]
        self.user_bias += p[:, -1]
        self.item_bias += q[:, -1]
        self._users, self._items = np.hstack([self._users, p[:, :-1]]), np.hstack([self._items, q[:, :-1]])
        if self._users.shape[1] > self._rank + _PENDING_COLUMNS:
            self._users, self._items = _strongest(self._users, self._items, self._rank)

    def mean(self, size: int) -> tuple[Float32Array, Float32Array]:
        """User and item vectors of ``size`` columns whose inner product is nearest to the mean of the samples'."""
        users, items = _strongest(self._users, self._items, size)
        scale = np.float32(self.samples**-0.5)
        return users * scale, items * scale

    def state(self) -> State:
        """All of it."""
        return {
            "samples": torch.tensor([self.samples]),
            "sum.user_bias": torch.from_numpy(self.user_bias),
            "sum.item_bias": torch.from_numpy(self.item_bias),
            "sum.users": torch.from_numpy(self._users),
            "sum.items": torch.from_numpy(self._items),
        }

    def load_state(self, state: State) -> None:
        """Puts it back."""
        self.samples = int(state["samples"].item())
        self.user_bias, self.item_bias = state["sum.user_bias"].numpy().copy(), state["sum.item_bias"].numpy().copy()
        self._users, self._items = state["sum.users"].numpy(), state["sum.items"].numpy()


def _strongest(left: Float32Array, right: Float32Array, size: int) -> tuple[Float32Array, Float32Array]:
    """(n, size) and (m, size) whose product L R' is the best approximation of ``left @ right.T`` of that rank.

    By the singular value decomposition of the small matrix between orthonormal bases of both; zeros are appended where
    there are fewer columns than ``size``.
    """
    left_basis, left_rest = _orthonormal(left)
    right_basis, right_rest = _orthonormal(right)
    u, values, v = np.linalg.svd(left_rest @ right_rest.T)
    kept = min(size, len(values))
    roots = np.sqrt(values[:kept])
    results = []
    for table, basis, vectors in ((left, left_basis, u[:, :kept]), (right, right_basis, v[:kept].T)):
        turned = (table @ (basis @ (vectors * roots)).astype(np.float32)).astype(np.float32)
        results.append(np.pad(turned, ((0, 0), (0, size - kept))))
    return results[0], results[1]


def _orthonormal(table: Float32Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """B (c, r) and R (r, c) such that table B has orthonormal columns and table = (table B) R."""
    values, vectors = np.linalg.eigh((table.T @ table).astype(np.float64))
    kept = values > max(values.max(initial=0.0) * 1e-6, 1e-12)  # what float32 can tell from nothing
    roots = np.sqrt(values[kept])
    return vectors[:, kept] / roots, roots[:, None] * vectors[:, kept].T


def _wishart(scale: npt.NDArray[np.float64], freedom: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A draw from the Wishart distribution, by Bartlett's decomposition."""
    size = len(scale)
    lower = np.tril(rng.standard_normal((size, size)), -1)
    lower[np.diag_indices(size)] = np.sqrt(rng.chisquare(freedom - np.arange(size)))
    root = np.linalg.cholesky((scale + scale.T) / 2) @ lower
    drawn: npt.NDArray[np.float64] = root @ root.T
    return drawn
