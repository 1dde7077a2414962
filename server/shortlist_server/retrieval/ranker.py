"""The network behind a model's vectors: scores the candidates that the index found, for re-ranking."""

import logging
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

log = logging.getLogger(__name__)

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
Place = Callable[[str, Float32Array], Tensor]

PADDING = -1
"""In place of an item row: no item."""

# Pairs scored at once, but for the last user's: on the CPU their hidden units shall stay in its cache, on a GPU 2^18
# pairs of 64 units are 64 MiB.
_PAIRS_AT_ONCE_CPU = 1 << 13
_PAIRS_AT_ONCE_GPU = 1 << 18


class Ranker:
    """Scores pairs of users and items by a perceptron, and by factors where there are any (NeuMF).

    He et al. 2017, "Neural Collaborative Filtering", equations 10 and 12. The first layer of the concatenated
    embeddings is a sum of a term for the user and one for the item, so that a user's is computed once for all
    candidates.

    Args:
        tensors: name to float32 tensor, as docs/model-format.md describes; their shapes must fit.
        place: puts an embedding table of some name where it shall be; all else follows. None to leave everything as it
            is on the CPU, so that memory-mapped tensors stay so.
    """

    def __init__(self, tensors: Mapping[str, Float32Array], place: Place | None = None) -> None:
        self._in_memory = tensors
        self._on_cpu: Ranker | None = None  # in place of a GPU that fails
        tables = {name: tensor for name, tensor in tensors.items() if name.endswith("_embeddings")}
        placed = {
            name: torch.from_numpy(table) if place is None else place(name, table) for name, table in tables.items()
        }
        device = placed["mlp.user_embeddings"].device
        rest = {name: torch.from_numpy(tensor).to(device) for name, tensor in tensors.items() if name not in tables}
        self._tensors = placed | rest
        self._users, self._items = (self._tensors[f"mlp.{side}_embeddings"] for side in ("user", "item"))
        self._layers = [
            (self._tensors[f"mlp.layers.{layer}.weight"], self._tensors[f"mlp.layers.{layer}.bias"])
            for layer in range(layer_count(tensors))
        ]
        self._slope = float(tensors["mlp.slope"][0])
        self._pairs_at_once = _PAIRS_AT_ONCE_CPU if self.device.type == "cpu" else _PAIRS_AT_ONCE_GPU

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self._users.device

    def score(self, users: Int64Array, items: Int64Array) -> Float32Array:
        """The network's own scores.

        Args:
            users: (b,) user rows.
            items: (b, c) item rows, the i-th line being the candidates of the i-th user; ``PADDING`` where there are
                fewer than c.

        Returns:
            (b, c) float32 on the CPU; minus infinity for padding.
        """
        if self._on_cpu is None:
            try:
                return self._score(users, items)
            except RuntimeError as error:
                if self.device.type == "cpu":
                    raise
                log.error("%s fails, and %d users are ranked on the CPU: %s", self.device, len(users), error)
                on_cpu = Ranker(self._in_memory)
                if not isinstance(error, torch.OutOfMemoryError):  # which the next batch need not meet
                    self._on_cpu = on_cpu
                return on_cpu.score(users, items)
        return self._on_cpu.score(users, items)

    @torch.inference_mode()
    def _score(self, users: Int64Array, items: Int64Array) -> Float32Array:
        at_once = max(1, self._pairs_at_once // max(1, items.shape[1]))
        scores = torch.empty(items.shape, device=self.device)
        for begin in range(0, len(users), at_once):
            block = slice(begin, begin + at_once)
            u, i = (torch.from_numpy(rows[block]).to(self.device) for rows in (users, items))
            # Padding takes the last row's score until it gets its own.
            scores[block] = (self._perceptron(u, i) + self._rest(u, i)).masked_fill_(i == PADDING, -torch.inf)
        return np.asarray(scores.cpu().numpy(), dtype=np.float32)

    def _perceptron(self, users: Tensor, items: Tensor) -> Tensor:
        """(b, c) its scores of items (b, c) for users (b,)."""
        weight, bias = self._layers[0]
        size = self._users.shape[1]
        of_users = functional.linear(self._users[users], weight[:, :size], bias)  # (b, h)
        hidden = functional.linear(self._items[items], weight[:, size:]).add_(of_users[:, None])  # (b, c, h)
        for weight, bias in self._layers[1:]:
            hidden = functional.linear(functional.leaky_relu_(hidden, self._slope), weight, bias)
        return hidden[..., 0]

    def _rest(self, users: Tensor, items: Tensor) -> Tensor:
        """(b, c) what the score has beside the perceptron: biases and factors."""
        tensors = self._tensors
        total = tensors["bias"].expand(items.shape)
        if "user_bias" in tensors:
            total = total + tensors["user_bias"][users, None]
        if "item_bias" in tensors:
            total = total + tensors["item_bias"][items]
        if "gmf.user_embeddings" in tensors:
            p, q = tensors["gmf.user_embeddings"][users], tensors["gmf.item_embeddings"][items]
            total = total + torch.bmm(q, p[..., None])[..., 0]
        return total


def layer_count(tensors: Mapping[str, object]) -> int:
    """How many layers the perceptron has, the last included."""
    return sum(name.startswith("mlp.layers.") and name.endswith(".weight") for name in tensors)
