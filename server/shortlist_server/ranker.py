"""The network behind a model's vectors: scores the candidates that the index found, for re-ranking."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

PADDING = -1
"""In place of an item row: no item."""

# Pairs scored at once: on the CPU their hidden units shall stay in its cache, on a GPU 2^18 pairs of 64 are 64 MiB.
_PAIRS_AT_ONCE_CPU = 1 << 13
_PAIRS_AT_ONCE_GPU = 1 << 18


class Ranker:
    """Scores pairs of users and items by a perceptron, and by factors where there are any (NeuMF).

    He et al. 2017, "Neural Collaborative Filtering", equations 10 and 12. The first layer of the concatenated
    embeddings is a sum of a term for the user and one for the item, so that a user's is computed once for all
    candidates.

    Args:
        tensors: name to float32 tensor, as docs/model-format.md describes; their shapes must fit.
        device: where they live. On the CPU they stay as they are, so that memory-mapped tensors stay so.
    """

    def __init__(self, tensors: Mapping[str, npt.NDArray[np.float32]], device: torch.device | str = "cpu") -> None:
        self._tensors = {name: torch.from_numpy(tensor).to(device) for name, tensor in tensors.items()}
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

    @torch.inference_mode()
    def score(self, users: Int64Array, items: Int64Array) -> Float32Array:
        """The network's own scores.

        Args:
            users: (b,) user rows.
            items: (b, c) item rows, the i-th line being the candidates of the i-th user; ``PADDING`` where there are
                fewer than c.

        Returns:
            (b, c) float32 on the CPU; minus infinity for padding.
        """
        u, i = (torch.from_numpy(rows).to(self.device) for rows in (users, items))
        flat = i.reshape(-1)  # (b * c,)
        of_users = functional.linear(self._users[u], self._first_half(of_items=False), self._layers[0][1])  # (b, h)
        lines = torch.arange(len(u), device=self.device).repeat_interleave(items.shape[1])  # (b * c,)
        scores = torch.empty(flat.shape, device=self.device)
        for begin in range(0, len(flat), self._pairs_at_once):
            block = slice(begin, begin + self._pairs_at_once)
            line, candidates = lines[block], flat[block].clamp(min=0)
            scores[block] = self._perceptron(of_users[line], candidates) + self._rest(u[line], candidates)
        scores[flat == PADDING] = -torch.inf
        return np.asarray(scores.reshape(i.shape).cpu().numpy(), dtype=np.float32)

    def _first_half(self, *, of_items: bool) -> Tensor:
        """The first layer's weights for the user embedding (h, d_u) or for the item embedding (h, d_i)."""
        size = self._users.shape[1]
        weight = self._layers[0][0]
        return weight[:, size:] if of_items else weight[:, :size]

    def _perceptron(self, of_users: Tensor, items: Tensor) -> Tensor:
        """(n,) its scores for items (n,) and the first layer's terms of their users (n, h)."""
        hidden = of_users + functional.linear(self._items[items], self._first_half(of_items=True))  # (n, h)
        for weight, bias in self._layers[1:]:
            hidden = functional.linear(functional.leaky_relu(hidden, self._slope), weight, bias)
        return hidden[:, 0]

    def _rest(self, users: Tensor, items: Tensor) -> Tensor:
        """(n,) what the score has beside the perceptron: biases and factors."""
        tensors = self._tensors
        total = tensors["bias"]
        if "user_bias" in tensors:
            total = total + tensors["user_bias"][users]
        if "item_bias" in tensors:
            total = total + tensors["item_bias"][items]
        if "gmf.user_embeddings" in tensors:
            total = total + (tensors["gmf.user_embeddings"][users] * tensors["gmf.item_embeddings"][items]).sum(1)
        return total


def layer_count(tensors: Mapping[str, object]) -> int:
    """How many layers the perceptron has, the last included."""
    return sum(name.startswith("mlp.layers.") and name.endswith(".weight") for name in tensors)
