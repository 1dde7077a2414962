"""What all models share that Adam trains."""

from abc import abstractmethod
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.models.base import Model, State, TrainingRun
from shortlist_trainer.models.config import AdamConfig, GradientConfig
from shortlist_trainer.progress import Bar

A_co = TypeVar("A_co", bound=AdamConfig, covariant=True)
G_co = TypeVar("G_co", bound=GradientConfig, covariant=True)


def looked_up(table: Tensor, rows: Tensor) -> Tensor:
    """``table[rows]``, with a gradient that does not depend on how threads take turns.

    Indexing adds up its gradient atomically, in any order: two trainings with one seed would differ.

    Args:
        table: (m,) or (m, d).
        rows: int64 of any shape.

    Returns:
        The shape of ``rows``, and d.
    """
    if table.dim() == 1:
        return functional.embedding(rows, table[:, None])[..., 0]
    return functional.embedding(rows, table)


class AdamModel(Model[A_co]):
    """A network trained by Adam with decoupled weight decay.

    The interactions are copied to the device once. Subclasses make their network from ``run.generator(0)`` and hand it
    to ``_train``.
    """

    divergence_advice = "lower learning_rate"

    def __init__(self, config: A_co, interactions: Interactions, run: TrainingRun) -> None:
        super().__init__(config, interactions, run)
        self.users = torch.from_numpy(interactions.users).long().to(run.device)  # (n,)
        self.items = torch.from_numpy(interactions.items).long().to(run.device)  # (n,)

    def _train(self, network: nn.Module) -> None:
        """Says what the optimiser works on."""
        self._network = network.to(self.run.device)
        self._optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    def _set_learning_rate(self, progress: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(progress)

    def state(self) -> State:
        """The network's parameters and Adam's moments."""
        state = {f"network.{name}": tensor for name, tensor in self._network.state_dict().items()}
        for number, moments in self._optimizer.state_dict()["state"].items():
            state |= {f"adam.{number}.{name}": tensor for name, tensor in moments.items()}
        return state

    def load_state(self, state: State) -> None:
        """Puts parameters and moments back."""
        prefix = "network."
        self._network.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        )
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("adam."):
                _, number, moment = name.split(".")
                moments.setdefault(int(number), {})[moment] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self._network.eval()


class GradientModel(AdamModel[G_co]):
    """A network trained on mini-batches of examples in a new random order every epoch."""

    @abstractmethod
    def loss(self, batch: Tensor) -> Tensor:
        """The mean loss of the examples whose numbers are in ``batch`` (b,), with a gradient."""

    def start_epoch(self, generator: torch.Generator) -> int:  # noqa: ARG002 # for models that draw examples
        """Draws the examples of an epoch; returns how many there are."""
        return len(self.interactions)

    def train_epoch(self, epoch: int, bar: Bar) -> float:
        """One pass over the examples."""
        device, generator = self.run.device, self.run.generator(epoch)
        self._network.train()
        count = self.start_epoch(generator)
        batches = torch.split(torch.randperm(count, generator=generator).to(device), self.config.batch_size)
        total, done = torch.zeros((), device=device), 0
        # Dropout and sampling on the device draw from torch's own numbers: seeded here, put back afterwards.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
            for step, batch in enumerate(batches):
                self._set_learning_rate(epoch - 1 + step / len(batches))
                with torch.autocast(device.type, torch.bfloat16, enabled=self.run.mixed_precision):
                    loss = self.loss(batch)
                self._optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
                self._optimizer.step()
                total += loss.detach() * len(batch)
                before, done = done, done + len(batch)
                passed = done * len(self.interactions) // count - before * len(self.interactions) // count
                bar.advance(passed, epoch=epoch, loss=loss.detach())
        self._network.eval()
        return float(total) / count
