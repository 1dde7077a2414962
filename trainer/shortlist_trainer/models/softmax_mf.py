"""Matrix factorization of implicit feedback by contrastive losses: softmax, bilateral softmax, BPR, cosine contrastive.

Model: score(u, i) = the cosine of p_u and q_i, or their inner product.
Loss, for a user's item i against negatives j:
    softmax: -log of the share of exp(score_i / temperature) in the sum of that of all items, which is estimated from
        the negatives (Bengio & Senécal 2008, "Adaptive Importance Sampling to Accelerate Training of a Neural
        Probabilistic Language Model"; over cosines: Wu et al. 2022, "On the Effectiveness of Sampled Softmax Loss for
        Item Recommendation");
    bilateral-softmax: the same with several of the user's items at once, weighed by a second temperature (Wu et al.
        2024, "BSL: Understanding and Improving Softmax Loss for Recommendation", equation 13);
    bpr: -log sigmoid(score_i - score_j), averaged over the negatives (Rendle et al. 2009, "BPR: Bayesian Personalized
        Ranking from Implicit Feedback");
    cosine-contrastive: 1 - score_i + negative_weight * the mean of max(0, score_j - margin) (Mao et al. 2021, "SimpleX:
        A Simple and Strong Baseline for Collaborative Filtering", equation 4);
    each plus regularization * (|p_u|^2 + |q_i|^2), averaged over the batch.
Optimiser: Adam with decoupled weight decay; a learning rate that is constant, falls by steps or along half a cosine.
Sampling: every interaction once an epoch, in a new random order; the negatives of a batch are shared by its users,
    which makes one matrix product of all scores. They are drawn uniformly or by popularity, or are the batch's own
    items, or all items. Where the loss is a softmax, how likely each was to be drawn is accounted for (Yi et al. 2019,
    "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations").
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.models.base import Embeddings, Float32Array, RowArray, TrainingRun
from shortlist_trainer.models.config import GradientConfig, Range, SearchSpace, require
from shortlist_trainer.models.gradient import GradientModel, looked_up

# Fewer steps than these learn too little in an epoch; a larger batch is quicker, as every step goes over whole tables.
_STEPS_AN_EPOCH = 100
_SMALLEST_BATCH = 128

# Scores that are computed at once on the CPU: half a MiB of them.
_BLOCK_SCORES = 1 << 17


@dataclass(frozen=True, kw_only=True)
class SoftmaxMFConfig(GradientConfig):
    """Hyper-parameters of ``softmax-mf``."""

    embedding_size: int = 64
    epochs: int = 30
    regularization: float = 0.0
    learning_rate: float = 0.005
    batch_size: int = 8192
    """Interactions in one step of the optimiser; fewer where an epoch of the data would have less than 100 steps."""

    loss: Literal["softmax", "bilateral-softmax", "bpr", "cosine-contrastive"] = "softmax"
    """What is minimised; see the module."""

    similarity: Literal["cosine", "dot"] = "cosine"
    """What a score is."""

    temperature: float = 0.15
    """What scores are divided by in the softmax of the negatives; smaller looks harder at the highest."""

    positive_temperature: float = 0.15
    """With loss=bilateral-softmax: the same for the user's own items."""

    positives: int = 4
    """With loss=bilateral-softmax: how many of the user's items are drawn for each example."""

    margin: float = 0.5
    """With loss=cosine-contrastive: negatives that score less do not count."""

    negative_weight: float = 100.0
    """With loss=cosine-contrastive: the weight of the negatives' mean."""

    negatives: Literal["uniform", "popularity", "in-batch", "all"] = "uniform"
    """Where negatives come from; in-batch are the items of the other examples."""

    negative_count: int = 1024
    """How many negatives a batch shares, where they are drawn."""

    initial_scale: float = 0.1
    """Standard deviation of the embeddings' first values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "temperature", "above 0", self.temperature)
        require(self.positive_temperature > 0, "positive_temperature", "above 0", self.positive_temperature)
        require(self.positives >= 1, "positives", "at least 1", self.positives)
        require(-1 <= self.margin <= 1, "margin", "-1 to 1", self.margin)
        require(self.negative_weight >= 0, "negative_weight", "at least 0", self.negative_weight)
        require(self.negative_count >= 1, "negative_count", "at least 1", self.negative_count)
        require(self.initial_scale > 0, "initial_scale", "above 0", self.initial_scale)

    def for_data(self, interactions: Interactions) -> Self:
        """The same with batches small enough for the data."""
        at_most = max(_SMALLEST_BATCH, len(interactions) // _STEPS_AN_EPOCH)
        return replace(self, batch_size=min(self.batch_size, at_most))


class _Tables(nn.Module):
    def __init__(self, interactions: Interactions, config: SoftmaxMFConfig, generator: torch.Generator) -> None:
        super().__init__()

        def initial(rows: RowArray, count: int) -> nn.Parameter:
            table = config.initial_scale * torch.randn(count, config.embedding_size, generator=generator)
            table[np.bincount(rows, minlength=count) == 0] = 0  # never trained; zeros stay at the end of every list
            return nn.Parameter(table)

        self.users = initial(interactions.users, interactions.user_count)  # (users, d)
        self.items = initial(interactions.items, interactions.item_count)  # (items, d)


class SoftmaxMF(GradientModel[SoftmaxMFConfig]):
    """``softmax-mf``. Ratings are not looked at: every interaction is a positive."""

    name = "softmax-mf"
    protocol = "full-rank"
    config_type = SoftmaxMFConfig
    search_space: ClassVar[SearchSpace] = {
        "temperature": Range(0.04, 0.5, log=True),
        "learning_rate": Range(1e-3, 2e-2, log=True),
        "dropout": Range(0, 0.5),
        "epochs": Range(15, 60, whole=True),
    }

    def __init__(self, config: SoftmaxMFConfig, interactions: Interactions, run: TrainingRun) -> None:
        super().__init__(config, interactions, run)
        self._tables = _Tables(interactions, config, run.generator(0))
        popularity = torch.from_numpy(interactions.item_popularity()).to(run.device)
        self._known_items = torch.nonzero(popularity)[:, 0]  # what was never touched is no negative either
        self._log_popularity = torch.log(popularity / len(interactions))  # (items,) log of the share of interactions
        self._offsets = torch.from_numpy(interactions.user_offsets()).to(run.device)
        self._train(self._tables)

    def loss(self, batch: Tensor) -> Tensor:
        """The loss of a batch of interactions."""
        config = self.config
        users, items = self.users[batch], self.items[batch]
        p, q = (
            looked_up(self._tables.users, users),
            looked_up(self._tables.items, items),
        )  # (b, d)
        norms = (p.square().sum(1) + q.square().sum(1)).mean()
        p, q = self._dropped(self._scaled(p)), self._scaled(q)
        negatives, log_expected = self._negatives(items)
        others = q if config.negatives == "in-batch" else self._item_vectors(negatives)  # (n, d)
        positive = (p * q).sum(1)
        match config.loss:
            case "softmax" | "bilateral-softmax":
                # The expectations ride along as one more column, which spares passes over the (b, n) scores.
                left = torch.cat([p / config.temperature, p.new_ones(len(p), 1)], dim=1)
                right = torch.cat([others, -log_expected[:, None]], dim=1)
                repulsion = _LogSumExp.apply(left, right, items.int(), negatives.int())  # type: ignore[no-untyped-call]
                attraction = self._attraction(users, p, positive)
                losses = torch.logaddexp(repulsion, positive / config.temperature) - attraction
            case "bpr":
                behind = positive[:, None] - p @ others.T
                losses = -functional.logsigmoid(behind).masked_fill(negatives == items[:, None], 0).mean(1)
            case "cosine-contrastive":
                excess = functional.relu(p @ others.T - config.margin).masked_fill(negatives == items[:, None], 0)
                losses = 1 - positive + config.negative_weight * excess.mean(1)
        return losses.mean() + config.regularization * norms

    def predict(self, users: RowArray, items: RowArray) -> Float32Array:
        """Scores (n,) of pairs of rows: cosines or inner products."""
        vectors = self.embeddings()
        return np.asarray(np.einsum("nd,nd->n", vectors.users[users], vectors.items[items]), dtype=np.float32)

    @torch.no_grad()
    def embeddings(self) -> Embeddings:
        """Users and items, of length 1 where scores are cosines."""
        users, items = self._scaled(self._tables.users), self._scaled(self._tables.items)
        return Embeddings(users.cpu().numpy().copy(), items.cpu().numpy().copy(), score_kind="preference")

    def _scaled(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=-1) if self.config.similarity == "cosine" else vectors

    def _dropped(self, vectors: Tensor) -> Tensor:
        return functional.dropout(vectors, self.config.dropout, self._tables.training)

    def _attraction(self, users: Tensor, p: Tensor, positive: Tensor) -> Tensor:
        """(b,) what pulls each user to its own items, in units of the negatives' temperature."""
        config = self.config
        if config.loss == "softmax":
            return positive / config.temperature
        begin = self._offsets[users]
        lengths = self._offsets[users + 1] - begin
        more = torch.rand(len(users), config.positives - 1, device=users.device)
        drawn = self.items[begin[:, None] + (more * lengths[:, None]).long()]  # (b, positives - 1)
        scores = torch.einsum("bd,bpd->bp", p, self._item_vectors(drawn))
        scores = torch.cat([positive[:, None], scores], dim=1) / config.positive_temperature
        mean = torch.logsumexp(scores, 1) - math.log(config.positives)
        return mean * config.positive_temperature / config.temperature

    def _item_vectors(self, rows: Tensor) -> Tensor:
        """(*rows, d) what scores are made of."""
        return self._scaled(looked_up(self._tables.items, rows))

    def _negatives(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) item rows, and (n,) the log of how often each is expected among them."""
        count, known = self.config.negative_count, self._known_items
        match self.config.negatives:
            case "in-batch":
                return items, self._log_popularity[items] + math.log(len(items))
            case "popularity":
                drawn = self.items[torch.randint(len(self.items), (count,), device=items.device)]
                return drawn, self._log_popularity[drawn] + math.log(count)
            case "uniform":
                drawn = known[torch.randint(len(known), (count,), device=items.device)]
                return drawn, torch.full_like(self._log_popularity[drawn], math.log(count / len(known)))
            case "all":
                return known, torch.zeros_like(self._log_popularity[known])


class _LogSumExp(torch.autograd.Function):
    """(b,) log of the sum over j of exp(left_b . right_j), where j is not the row's own item.

    In blocks that stay in a core's cache, computed again on the way back instead of kept: the (b, n) scores would
    otherwise pass through memory some fifteen times.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, own: Tensor, items: Tensor) -> Tensor:
        """Arguments: (b, k), (n, k), (b,) the rows' items, (n,) the columns' items."""
        sums = torch.cat(
            [torch.logsumexp(_scores(left[rows], right, own[rows], items), 1) for rows in _blocks(left, right)]
        )
        ctx.save_for_backward(left, right, own, items, sums)
        return sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of left and right."""
        left, right, own, items, sums = ctx.saved_tensors
        of_left, of_right = torch.empty_like(left), torch.zeros_like(right)
        for rows in _blocks(left, right):
            shares = _scores(left[rows], right, own[rows], items).sub_(sums[rows, None]).exp_()
            shares.mul_(gradients[0][rows, None])
            of_left[rows] = shares @ right
            of_right.addmm_(shares.T, left[rows])
        return of_left, of_right, None, None


def _scores(left: Tensor, right: Tensor, own: Tensor, items: Tensor) -> Tensor:
    return (left @ right.T).masked_fill_(items == own[:, None], -math.inf)


def _blocks(left: Tensor, right: Tensor) -> list[slice]:
    rows = max(1, _BLOCK_SCORES // len(right)) if left.device.type == "cpu" else len(left)
    return [slice(begin, begin + rows) for begin in range(0, len(left), rows)]
