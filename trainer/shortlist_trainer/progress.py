"""Progress of long work: loss, rate and time left."""

import sys
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm


class Progress:
    """Shows a bar for each piece of long work.

    Args:
        label: what the work is called.
        file: where bars are drawn; None for standard error.
    """

    def __init__(self, label: str, file: TextIO | None = None) -> None:
        self._label = label
        self._file = file or sys.stderr

    def bar(self, total: int, unit: str) -> "Bar":
        """A bar of ``total`` steps, named ``unit`` each."""
        return Bar(self._label, total, unit, self._file)


class Bar:
    """One piece of work under way, redrawn in place on a terminal and every ten seconds elsewhere."""

    def __init__(self, label: str, total: int, unit: str, file: TextIO) -> None:
        interval_seconds = 0.1 if file.isatty() else 10.0
        self._bar = tqdm(total=total, unit=unit, unit_scale=True, desc=label, mininterval=interval_seconds, file=file)

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
