"""A vector for a user the model has not seen, computed from a history of items.

docs/decisions/0016-fold-in.md says which solver is for which model, and how good each is.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_SAMPLED_USERS = 1 << 16
"""So many users say how user vectors are spread; of more users every other, every third and so on is looked at."""


class FoldIn(Protocol):
    """Turns a history into what stands in for a user's embedding and bias."""

    def vector(self, items: Int64Array, weights: Float32Array | None) -> tuple[Float32Array, float]:
        """The user side of the score.

        Args:
            items: (n,) distinct item rows; may be empty.
            weights: (n,) float32; for a rating model the ratings, for others how many interactions each item counts as,
                those below 0 as none. NaN for the model's usual interaction, None for nothing else.

        Returns:
            A vector (d,) float32 and a bias, so that vector . item embedding + bias + score constant is the score.
        """


class ImplicitLeastSquares:
    """The solve that iALS trains users by, for one user more.

    w = (sum over s of c_s h_s h_s' + alpha0 H'H + regularization * (sum of c + alpha0 * items)^nu I)^-1 sum of c_s h_s,
    c_s being the weight of an item, 1 in training (Rendle, Krichene, Zhang & Koren 2021, "Revisiting the Performance of
    iALS on Item Recommendation Benchmarks", equation 5).

    Args:
        items: (items, d) float32 the vectors h; no column is a bias.
        unobserved_weight: alpha0.
        regularization: lambda.
        regularization_exponent: nu.
    """

    def __init__(
        self, items: Float32Array, unobserved_weight: float, regularization: float, regularization_exponent: float
    ) -> None:
        self._items = items
        self._unobserved = unobserved_weight * len(items)
        self._regularization, self._exponent = regularization, regularization_exponent
        # (d, d): every pair. By blocks, so that no copy of the table in float64 is made.
        blocks = np.array_split(items, -(-len(items) // _SAMPLED_USERS))
        gramian = sum(block.astype(np.float64).T @ block for block in blocks)
        self._everything = np.asarray(unobserved_weight * gramian, dtype=np.float32)

    def vector(self, items: Int64Array, weights: Float32Array | None) -> tuple[Float32Array, float]:
        """The user side of the score; the bias is 0."""
        h = self._items[items]  # (n, d)
        confidence = _counts(items, weights)
        weighted = h * confidence[:, None]
        left = self._everything + weighted.T @ h  # (d, d)
        ridge = self._regularization * (float(confidence.sum()) + self._unobserved) ** self._exponent
        left[np.diag_indices_from(left)] += np.float32(ridge)
        return np.linalg.solve(left, weighted.sum(axis=0)), 0.0


class NormalPrior:
    """The most probable user of a rating model, users being spread as those of the user table are.

    With a = [p, b_u] the user's vector and bias, N(mean, L L') the normal distribution of the model's users,
    x = [q_i, 1] and y = r - score constant - b_i for each rating r, minimises over z, a being mean + L z, the sum of
    (y - a.x)^2 / noise_variance + |z|^2: the user step of Salakhutdinov & Mnih 2008, "Bayesian Probabilistic Matrix
    Factorization using Markov Chain Monte Carlo", equations 11 to 13, with a prior estimated once. In z it is a ridge
    regression, which has a solution even where users do not spread in every direction.

    An item without a weight is taken as liked: as a rating one standard deviation of the noise above what the model
    expects of everybody.

    Args:
        items: (items, d) float32 with bias columns last.
        bias_columns: how many there are.
        users: (users, d) float32 or float16, the bias columns' side being 1.
        user_bias: (users,) float32, or None for zeros.
        score_constant: added to every score.
        noise_variance: of a rating around its prediction.
    """

    def __init__(
        self,
        items: Float32Array,
        bias_columns: int,
        users: npt.NDArray[np.floating],
        user_bias: Float32Array | None,
        score_constant: float,
        noise_variance: float,
    ) -> None:
        self._items = items
        self._size = items.shape[1] - bias_columns
        self._constant = np.float32(score_constant)
        self._noise_variance = np.float32(noise_variance)
        bias = np.zeros(len(users), dtype=np.float32) if user_bias is None else user_bias
        step = _sampling_step(users)
        trained = np.column_stack([users[::step, : self._size], bias[::step]]).astype(np.float64)  # (n, size + 1)
        trained = trained[trained.any(axis=1)]  # all zero is who has no ratings
        mean, covariance = np.zeros(self._size + 1), np.zeros((self._size + 1, self._size + 1))
        if len(trained) > 1:
            mean, covariance = trained.mean(axis=0), np.cov(trained, rowvar=False)
        variances, directions = np.linalg.eigh(covariance)
        root = directions * np.sqrt(np.maximum(variances, 0))  # rounding makes nothing negative
        self._mean, self._root = mean.astype(np.float32), root.astype(np.float32)

    def vector(self, items: Int64Array, weights: Float32Array | None) -> tuple[Float32Array, float]:
        """The user side of the score, weights being ratings."""
        vectors = self._items[items]  # (n, d)
        features = np.ones((len(items), self._size + 1), dtype=np.float32)
        features[:, :-1] = vectors[:, : self._size]
        above = np.full(len(items), np.sqrt(self._noise_variance))
        if weights is not None:
            rated = ~np.isnan(weights)
            above[rated] = (weights - self._constant - vectors[:, self._size :].sum(axis=1))[rated]
        turned = features @ self._root  # (n, size + 1)
        left = turned.T @ turned
        left[np.diag_indices_from(left)] += self._noise_variance
        z = np.linalg.solve(left, turned.T @ (above - features @ self._mean))
        solved = self._mean + self._root @ z
        vector = np.ones(self._items.shape[1], dtype=np.float32)
        vector[: self._size] = solved[:-1]
        return vector, float(solved[-1])


class CosineMean:
    """The mean of the items' directions.

    Args:
        items: (items, d) float32; no column is a bias.
    """

    def __init__(self, items: Float32Array) -> None:
        self._items = items

    def vector(self, items: Int64Array, weights: Float32Array | None) -> tuple[Float32Array, float]:
        """The user side of the score; the bias is 0."""
        taste = self._items[items]
        lengths = np.linalg.norm(taste, axis=1)
        shares = np.divide(_counts(items, weights), lengths, out=np.zeros_like(lengths), where=lengths > 0)
        return shares @ taste / np.float32(max(len(items), 1)), 0.0


class UserLength:
    """Another's vectors at the length of the mean user's, so that they weigh against item biases as users' do.

    Args:
        direction: folds in over the columns that are no biases.
        bias_columns: how many biases follow them; their user side is 1.
        users: (users, d) float32 or float16, the bias columns' side among them.
    """

    def __init__(self, direction: FoldIn, bias_columns: int, users: npt.NDArray[np.floating]) -> None:
        self._direction = direction
        self._ones = np.ones(bias_columns, dtype=np.float32)
        taste = users[:: _sampling_step(users), : users.shape[1] - bias_columns]
        lengths = np.linalg.norm(taste.astype(np.float32), axis=1)
        trained = lengths[lengths > 0]
        self._length = float(trained.mean()) if len(trained) else 0.0

    def vector(self, items: Int64Array, weights: Float32Array | None) -> tuple[Float32Array, float]:
        """The user side of the score."""
        taste, bias = self._direction.vector(items, weights)
        length = float(np.linalg.norm(taste))
        scale = np.float32(self._length / length if length > 0 else 0)
        return np.concatenate([scale * taste, self._ones]), bias


def _counts(items: Int64Array, weights: Float32Array | None) -> Float32Array:
    """(n,) how many interactions each item counts as."""
    if weights is None:
        return np.ones(len(items), dtype=np.float32)
    return np.maximum(np.where(np.isnan(weights), np.float32(1), weights), np.float32(0))


def _sampling_step(users: npt.NDArray[np.floating]) -> int:
    return max(1, len(users) // _SAMPLED_USERS)
