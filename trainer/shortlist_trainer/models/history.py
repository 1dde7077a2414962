"""What happened in each epoch of a training run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: its number; 1 is the first.
        loss: the mean training loss.
        seconds: wall time, validation left out.
        metric: the validation metric after the epoch, where there is validation.
    """

    epoch: int
    loss: float
    seconds: float
    metric: float | None = None


@dataclass(frozen=True)
class TrainingHistory:
    """All epochs of a run.

    Attributes:
        epochs: in order.
        metric_name: what was measured after each epoch, such as "ndcg@10"; None where nothing was.
        best_epoch: the epoch whose parameters were kept, where there is validation.
    """

    epochs: tuple[EpochRecord, ...]
    metric_name: str | None = None
    best_epoch: int | None = None
