"""Neural collaborative filtering of implicit feedback.

Model (He, Liao, Zhang, Nie, Hu & Chua 2017, "Neural Collaborative Filtering"), the logit of a user touching an item:
    gmf: sum over f of h_f p_uf q_if + b_i + b, generalised matrix factorization (equation 9) with an item bias;
    mlp: a perceptron over the concatenation of other embeddings of user and item, plus b (equation 10);
    neumf: gmf_share times the first plus 1 - gmf_share times the second: their joint output layer (equation 12) with
        the paper's trade-off alpha.
Loss: binary cross-entropy with logits plus regularization * (|p_u|^2 + |q_i|^2), averaged over examples.
Optimiser: Adam with decoupled weight decay. With pre-training, neumf's parts first learn each from its own loss; then
    they go on together, from the loss of their sum.
Sampling: every interaction once an epoch, in a new random order, each beside ``negatives`` items drawn anew from those
    that its user has not touched.

What is published. The logit of gmf is an inner product, [h * p_u, 1] . [q_i, b_i]. The perceptron's is none. The bias
column holds what it gives a user without an embedding; what it gives beyond that is fitted by ``retrieval_size``
columns of least-squares vectors (``low_rank``) beside the columns of gmf. That keeps training as the paper has it, and
the vectors follow the network instead of one part of it. The network itself is the ``ranker``.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.errors import DataError
from shortlist_trainer.models.base import Embeddings, Float32Array, FoldIn, Ranker, RowArray, TrainingRun
from shortlist_trainer.models.config import GradientConfig, Range, SearchSpace, require
from shortlist_trainer.models.gradient import GradientModel, looked_up
from shortlist_trainer.models.negatives import NegativeSampler
from shortlist_trainer.models.perceptron import Perceptron, embedding_table
from shortlist_trainer.progress import Bar

# Pairs scored at once: few enough that their hidden units stay in the processor's cache.
_PAIRS_AT_ONCE = 1 << 13

# Fewer steps than these leave a network far from where it goes; smaller batches than this waste the processor.
_STEPS_AN_EPOCH = 200
_SMALLEST_BATCH = 64

# Of a fold-in: the weight of all unobserved pairs together, against 1 for all interactions, and the regularisation as
# a share of what those pairs add to the mean column (docs/decisions/0016-fold-in.md).
_UNOBSERVED_TO_OBSERVED = 14.0
_REGULARIZATION_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class NeuralCFConfig(GradientConfig):
    """Hyper-parameters of ``ncf``. ``embedding_size`` is gmf's, and ``dropout`` that of the perceptron's units."""

    embedding_size: int = 64
    epochs: int = 10
    regularization: float = 0.01
    learning_rate: float = 0.005
    batch_size: int = 4096
    """Interactions in one step of the optimiser, each with its negatives; fewer where an epoch of the data would have
    less than 200 steps."""

    architecture: Literal["gmf", "mlp", "neumf"] = "neumf"
    """Factors, a perceptron, or both."""

    pretraining_epochs: int = 8
    """With architecture=neumf: of all epochs the first in which each part learns by itself."""

    gmf_share: float = 0.75
    """With architecture=neumf: the weight of gmf's logit, the perceptron's having the rest."""

    negatives: int = 8
    """Untouched items beside each interaction, drawn anew every epoch."""

    mlp_embedding_size: int = 32
    """Columns of the perceptron's own user and item embeddings."""

    hidden_layers: tuple[int, ...] = (64, 32)
    """Units of the perceptron's layers."""

    initial_scale: float = 0.1
    """Standard deviation of the embeddings' first values."""

    retrieval_size: int = 32
    """Columns of the published vectors that follow the perceptron."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.pretraining_epochs >= 0, "pretraining_epochs", "at least 0", self.pretraining_epochs)
        require(0 < self.gmf_share < 1, "gmf_share", "between 0 and 1", self.gmf_share)
        require(self.negatives >= 1, "negatives", "at least 1", self.negatives)
        require(self.mlp_embedding_size >= 1, "mlp_embedding_size", "at least 1", self.mlp_embedding_size)
        require(all(units >= 1 for units in self.hidden_layers), "hidden_layers", "at least 1", self.hidden_layers)
        require(self.initial_scale > 0, "initial_scale", "above 0", self.initial_scale)
        require(self.retrieval_size >= 1, "retrieval_size", "at least 1", self.retrieval_size)

    def for_data(self, interactions: Interactions) -> Self:
        """The same with batches small enough for the data."""
        at_most = max(_SMALLEST_BATCH, len(interactions) // _STEPS_AN_EPOCH)
        return replace(self, batch_size=min(self.batch_size, at_most))


class GeneralizedFactors(nn.Module):
    """Generalised matrix factorization: sum over f of h_f p_uf q_if + b_i.

    Args:
        interactions: how many users and items there are, and which have interactions; the others' factors are zero.
        embedding_size: d.
        initial_scale: standard deviation of the factors' first values.
        generator: draws the factors.
    """

    def __init__(
        self, interactions: Interactions, embedding_size: int, initial_scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()

        def table(rows: RowArray, count: int) -> nn.Parameter:
            return embedding_table(rows, count, embedding_size, initial_scale, generator)

        self.users = table(interactions.users, interactions.user_count)  # (users, d)
        self.items = table(interactions.items, interactions.item_count)  # (items, d)
        self.output = nn.Parameter(torch.ones(embedding_size))
        self.item_bias = nn.Parameter(torch.zeros(interactions.item_count))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """(b, k) logits of items (b, k) for users (b,)."""
        p, q = looked_up(self.users, users) * self.output, looked_up(self.items, items)
        return (p[:, None] * q).sum(-1) + looked_up(self.item_bias, items)


class NeuralNetwork(nn.Module):
    """The parts that an architecture consists of; its logit is the weighted mean of theirs."""

    def __init__(self, config: NeuralCFConfig, interactions: Interactions, generator: torch.Generator) -> None:
        super().__init__()
        scale = config.initial_scale
        self.gmf: GeneralizedFactors | None = None
        self.mlp: Perceptron | None = None
        if config.architecture != "mlp":
            self.gmf = GeneralizedFactors(interactions, config.embedding_size, scale, generator)
        if config.architecture != "gmf":
            sizes = (config.mlp_embedding_size, config.mlp_embedding_size)
            self.mlp = Perceptron(interactions, sizes, config.hidden_layers, 0.0, scale, generator)
        # Of all examples this share is positive, so that the first steps need not find it out.
        self.bias = nn.Parameter(torch.tensor([-math.log(config.negatives)]))
        neumf = config.architecture == "neumf"
        self.gmf_share, self.mlp_share = (config.gmf_share, 1 - config.gmf_share) if neumf else (1.0, 1.0)

    def forward(self, users: Tensor, items: Tensor, dropout: float) -> list[Tensor]:
        """Each part's logits (b, k) of items (b, k) for users (b,)."""
        logits = [] if self.gmf is None else [self.gmf(users, items) + self.bias]
        return logits if self.mlp is None else [*logits, self.mlp(users, items, dropout) + self.bias]

    def shares(self) -> list[float]:
        """The weight of each part's logit, in the order of ``forward``."""
        gmf = [] if self.gmf is None else [self.gmf_share]
        return gmf if self.mlp is None else [*gmf, self.mlp_share]

    def norms(self, users: Tensor, items: Tensor) -> Tensor:
        """The squared norms of all embeddings that take part, averaged over the examples."""
        total = self.bias.new_zeros(())
        for part in (self.gmf, self.mlp):
            if part is not None:
                # Every row's norm is computed once, and there are fewer rows than examples.
                of_users, of_items = part.users.square().sum(1), part.items.square().sum(1)
                total = total + looked_up(of_users, users).mean() + looked_up(of_items, items).mean()
        return total


class NeuralCF(GradientModel[NeuralCFConfig]):
    """``ncf``. Ratings are not looked at: every interaction is a positive."""

    name = "ncf"
    protocol = "full-rank"
    config_type = NeuralCFConfig
    search_space: ClassVar[SearchSpace] = {
        "learning_rate": Range(1e-3, 2e-2, log=True),
        "regularization": Range(2e-3, 5e-2, log=True),
        "negatives": Range(2, 16, log=True, whole=True),
        "gmf_share": Range(0.3, 0.95),
        "dropout": Range(0, 0.3),
    }

    def __init__(self, config: NeuralCFConfig, interactions: Interactions, run: TrainingRun) -> None:
        super().__init__(config, interactions, run)
        self._sampler = NegativeSampler(interactions, run.device)
        # Who touched everything prefers nothing that is left.
        self._examples = torch.nonzero(self._sampler.untouched_counts[self.users] > 0)[:, 0]
        if len(self._examples) == 0:
            raise DataError("every user has touched every item; ncf learns from what users leave")
        self._negatives = torch.empty(0)
        self._parts_together = True
        self._ncf = NeuralNetwork(config, interactions, run.generator(0))
        self._train(self._ncf)

    def train_epoch(self, epoch: int, bar: Bar) -> float:
        """One pass over the interactions and as many draws of their negatives."""
        self._parts_together = epoch > self.config.pretraining_epochs
        return super().train_epoch(epoch, bar)

    def start_epoch(self, generator: torch.Generator) -> int:
        """Draws the negatives of every interaction."""
        users = self.users[self._examples]
        drawn = [self._sampler.draw(users, generator).int() for _ in range(self.config.negatives)]
        self._negatives = torch.stack(drawn, dim=1)  # (n, negatives)
        return len(users)

    def loss(self, batch: Tensor) -> Tensor:
        """Cross-entropy and norms of the interactions in a batch and their negatives."""
        examples = self._examples[batch]
        users = self.users[examples]  # (b,)
        items = torch.cat([self.items[examples, None], self._negatives[batch].long()], dim=1)  # (b, 1 + negatives)
        logits = torch.stack(self._ncf(users, items, self.config.dropout)).float()  # (parts, b, 1 + negatives)
        if self._parts_together:
            shares = logits.new_tensor(self._ncf.shares())
            logits = (shares[:, None, None] * logits).sum(0, keepdim=True)
        # -log sigmoid(x) = softplus(x) - x for the positive, -log(1 - sigmoid(x)) = softplus(x) for the others.
        entropy = (functional.softplus(logits).sum() - logits[..., 0].sum()) / items.numel()
        return entropy + self.config.regularization * self._ncf.norms(users, items)

    def predict(self, users: RowArray, items: RowArray) -> Float32Array:
        """Logits (n,); only their order matters, since the share of positives is that of the sampling."""
        scores = np.empty(len(users), dtype=np.float32)
        factors, perceptron = self._folded_factors(), self._ncf.mlp
        mlp = None if perceptron is None else perceptron.scorer()
        for begin in range(0, len(users), _PAIRS_AT_ONCE):
            block = slice(begin, begin + _PAIRS_AT_ONCE)
            u, i = (torch.from_numpy(rows[block]).long().to(self.run.device) for rows in (users, items))
            logits = self._ncf.bias.detach().expand(len(u))
            if factors is not None:
                p, q, item_bias = factors
                logits = logits + (p.index_select(0, u) * q.index_select(0, i)).sum(1) + item_bias[i]
            if mlp is not None:
                logits = logits + self._ncf.mlp_share * mlp(u, i)
            scores[block] = logits.cpu().numpy()
        return scores

    def embeddings(self) -> Embeddings:
        """The inner products of gmf and, in ``retrieval_size`` columns, those that follow the perceptron best."""
        users, items = [], []
        biases = np.zeros(self.interactions.item_count, dtype=np.float32)
        if (factors := self._folded_factors()) is not None:
            p, q, item_bias = (tensor.cpu().numpy() for tensor in factors)
            users, items, biases = [p], [q], biases + item_bias
        if self._ncf.mlp is not None:
            fitted = self._ncf.mlp.fitted_vectors(self.config.retrieval_size, self.run.generator(0, 1))
            scale = np.float32(self._ncf.mlp_share)
            users, items = [*users, scale * fitted.users], [*items, fitted.items]
            biases = biases + scale * fitted.item_bias
        return Embeddings(
            users=np.column_stack([*users, np.ones(self.interactions.user_count, np.float32)]),
            items=np.column_stack([*items, biases]),
            score_constant=float(self._ncf.bias.detach()),
            bias_columns=1,
            score_kind="preference",
        )

    def ranker(self) -> Ranker | None:
        """The network, but for gmf, whose inner products are its scores."""
        if self._ncf.mlp is None:
            return None
        tensors = {"bias": self._ncf.bias.detach().cpu().numpy()} | self._ncf.mlp.tensors("mlp.")
        last = len(self._ncf.mlp.weights) - 1
        for name in (f"mlp.layers.{last}.weight", f"mlp.layers.{last}.bias"):
            tensors[name] = tensors[name] * np.float32(self._ncf.mlp_share)
        if (factors := self._folded_factors()) is not None:
            names = ("gmf.user_embeddings", "gmf.item_embeddings", "item_bias")
            tensors |= {name: tensor.cpu().numpy() for name, tensor in zip(names, factors, strict=True)}
        return Ranker(self.config.architecture, tensors)

    def fold_in(self) -> FoldIn:
        """The least squares of iALS over the published columns: no user side of the network can be solved for."""
        interactions, items = self.interactions, self.embeddings().items[:, :-1]
        pairs = interactions.user_count * interactions.item_count
        unobserved_weight = _UNOBSERVED_TO_OBSERVED * len(interactions) / pairs
        mean_column = float(np.square(items, dtype=np.float64).sum()) / items.shape[1]
        return FoldIn(
            "implicit-least-squares",
            unobserved_weight=unobserved_weight,
            regularization=_REGULARIZATION_SHARE * unobserved_weight * mean_column,
        )

    @torch.inference_mode()
    def _folded_factors(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Users (users, d), items (items, d) and item biases (items,) that give gmf's part of the logit."""
        if (gmf := self._ncf.gmf) is None:
            return None
        share = self._ncf.gmf_share
        return share * gmf.users * gmf.output, gmf.items.detach(), share * gmf.item_bias
