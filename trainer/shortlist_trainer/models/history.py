"""How a training went, epoch by epoch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the training interactions.

    Attributes:
        epoch: 1 is the first.
        loss: mean training loss.
        seconds: wall time of the epoch.
        metric: the validation metric after the epoch, where there is validation.
    """

    epoch: int
    loss: float
    seconds: float
    metric: float | None = None


@dataclass(frozen=True)
class TrainingHistory:
    """The epochs of one training.

    Attributes:
        epochs: in the order they were run.
        metric_name: what ``EpochRecord.metric`` is, such as "ndcg@10" or "rmse".
        best_epoch: the epoch whose parameters were kept, where there is validation.
    """

    epochs: tuple[EpochRecord, ...]
    metric_name: str | None = None
    best_epoch: int | None = None
