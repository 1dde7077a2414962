"""Progress of long work, shown on standard error: loss, rate and time left."""

import sys
from types import TracebackType
from typing import Protocol, Self

from tqdm import tqdm


class Bar(Protocol):
    """One piece of work under way."""

    def advance(self, steps: int, *, epoch: int, loss: float) -> None:
        """Tells of ``steps`` more done and of the loss now."""


class Progress:
    """Shows a bar for each piece of long work."""

    def __init__(self, label: str) -> None:
        self._label = label

    def bar(self, total: int, unit: str) -> "TqdmBar":
        """A bar of ``total`` steps, named ``unit`` each."""
        return TqdmBar(self._label, total, unit)


class TqdmBar:
    """A bar that is redrawn in place on a terminal, and every ten seconds elsewhere."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total, unit=unit, unit_scale=True, desc=label, mininterval=0.1 if on_terminal else 10, file=sys.stderr
        )

    def advance(self, steps: int, *, epoch: int, loss: float) -> None:
        """Tells of ``steps`` more done and of the loss now."""
        self._bar.set_postfix(epoch=epoch, loss=f"{loss:.4f}", refresh=False)
        self._bar.update(steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
