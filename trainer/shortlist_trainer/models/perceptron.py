"""A multi-layer perceptron over the concatenation of a user and an item embedding."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from shortlist_trainer.data.dataset import Float32Array, Int64Array, Interactions
from shortlist_trainer.models.gradient import looked_up
from shortlist_trainer.models.low_rank import fit_vectors


@dataclass(frozen=True)
class FittedVectors:
    """Inner products near the scores of a perceptron: users[u] . items[i] + item_bias[i].

    Attributes:
        users: (users, d) float32; zero for a user whose embedding is zero.
        items: (items, d) float32.
        item_bias: (items,) float32, the scores for such a user.
    """

    users: Float32Array
    items: Float32Array
    item_bias: Float32Array


class Perceptron(nn.Module):
    """Leaky ReLUs between linear layers; with no hidden layer one linear layer.

    The first layer of a concatenation is a sum of one term for the user and one for the item, W [p; q] = W_p p + W_q q,
    so that each is computed once for a row, however many pairs the row is in.

    Args:
        interactions: how many users and items there are, and which have interactions; the others' embeddings are zero.
        sizes: columns of the user embeddings, and of the item embeddings.
        hidden_layers: how many units each has.
        slope: of the leaky ReLU below 0; 0 for the plain one.
        initial_scale: standard deviation of the embeddings' first values.
        generator: draws all first values.
    """

    def __init__(
        self,
        interactions: Interactions,
        sizes: tuple[int, int],
        hidden_layers: Sequence[int],
        slope: float,
        initial_scale: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.slope = slope
        self.users = embedding_table(interactions.users, interactions.user_count, sizes[0], initial_scale, generator)
        self.items = embedding_table(interactions.items, interactions.item_count, sizes[1], initial_scale, generator)
        widths = [sum(sizes), *hidden_layers, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(widths):
            scale = math.sqrt((2 if outputs > 1 else 1) / inputs)  # He et al. 2015: variance survives the ReLUs
            self.weights.append(nn.Parameter(scale * torch.randn(outputs, inputs, generator=generator)))
            self.biases.append(nn.Parameter(torch.zeros(outputs)))

    def forward(self, users: Tensor, items: Tensor, dropout: float = 0.0) -> Tensor:
        """Scores of items for users.

        Args:
            users: (b,) user rows.
            items: (b, k) item rows.
            dropout: the share of hidden units that are set to zero in training.

        Returns:
            (b, k) scores.
        """
        of_users, of_items = self._split_first()
        hidden = _rows_times(self.users, of_users, users)[:, None] + _rows_times(self.items, of_items, items)
        return self._rest(hidden + self.biases[0], dropout)

    def scorer(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What gives the scores (n,) of pairs of user rows (n,) and item rows (n,), without a gradient."""
        of_users, of_items = self._first_sums()

        @torch.inference_mode()
        def score(users: Tensor, items: Tensor) -> Tensor:
            return self._rest(of_users.index_select(0, users) + of_items.index_select(0, items), 0.0)

        return score

    def fitted_vectors(self, size: int, generator: torch.Generator) -> FittedVectors:
        """Vectors whose inner products come near the scores.

        Args:
            size: their columns.
            generator: draws the pairs that they are fitted to.
        """
        of_users, of_items = self._first_sums()
        with torch.inference_mode():
            without_user = self._rest(of_items + self.biases[0], 0.0)  # (items,)
            unknown = (self.users == 0).all(1)  # (users,)

        @torch.inference_mode()
        def score(users: Int64Array, items: Int64Array) -> Float32Array:
            u, i = (torch.from_numpy(rows).to(of_users.device) for rows in (users, items))
            scores = self._rest(of_users[u, None] + of_items[i], 0.0) - without_user[i]
            scores[unknown[u]] = 0  # but for rounding they are
            return np.asarray(scores.cpu().numpy(), dtype=np.float32)

        users, items = fit_vectors(score, len(of_users), len(of_items), size, generator)
        return FittedVectors(users, items, without_user.cpu().numpy())

    def tensors(self, prefix: str) -> dict[str, npt.NDArray[np.float32]]:
        """Name, after ``prefix``, to all that is needed to compute scores."""
        named = {"user_embeddings": self.users, "item_embeddings": self.items}
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            named |= {f"layers.{layer}.weight": weight, f"layers.{layer}.bias": bias}
        arrays = {prefix + name: tensor.detach().cpu().numpy() for name, tensor in named.items()}
        return arrays | {f"{prefix}slope": np.array([self.slope], dtype=np.float32)}

    def _split_first(self) -> tuple[Tensor, Tensor]:
        """The first layer's weights for the user embedding (h, d_u) and for the item embedding (h, d_i)."""
        size = self.users.shape[1]
        return self.weights[0][:, :size], self.weights[0][:, size:]

    @torch.inference_mode()
    def _first_sums(self) -> tuple[Tensor, Tensor]:
        """The first layer's terms of every user, the bias with them, (users, h) and of every item (items, h)."""
        of_users, of_items = self._split_first()
        return functional.linear(self.users, of_users, self.biases[0]), functional.linear(self.items, of_items)

    def _rest(self, hidden: Tensor, dropout: float) -> Tensor:
        """From the sums of the first layer (…, h) to scores (…)."""
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            hidden = functional.leaky_relu(hidden, self.slope)
            hidden = functional.linear(functional.dropout(hidden, dropout, self.training), weight, bias)
        return hidden[..., 0]


def embedding_table(
    rows: npt.NDArray[np.integer], count: int, size: int, scale: float, generator: torch.Generator
) -> nn.Parameter:
    """(count, size) normal numbers of standard deviation ``scale``; rows without an interaction begin at zero."""
    table = scale * torch.randn(count, size, generator=generator)
    table[np.bincount(rows, minlength=count) == 0] = 0
    return nn.Parameter(table)


def _rows_times(table: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """Chosen rows of a table (m, d), each times a weight (h, d): (…, h)."""
    if len(table) <= rows.numel():  # multiply what is fewer
        return looked_up(functional.linear(table, weight), rows)
    return functional.linear(looked_up(table, rows), weight)
