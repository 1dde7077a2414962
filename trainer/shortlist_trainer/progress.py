"""Progress of long work, and stopping it: loss, rate and time left."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Self, SupportsFloat, TextIO

from tqdm import tqdm


class StopRequested(Exception):
    """The user wants the work to end; what is done so far is kept."""


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
        self._interval_seconds = 0.1 if file.isatty() else 10.0
        self._drawn = 0.0
        self._last: tuple[int, SupportsFloat] | None = None
        self._bar = tqdm(
            total=total, unit=unit, unit_scale=True, desc=label, mininterval=self._interval_seconds, file=file
        )

    def advance(self, steps: int, *, epoch: int, loss: SupportsFloat) -> None:
        """Tells of ``steps`` more done and of the loss now.

        Args:
            steps: how many.
            epoch: the epoch under way.
            loss: a number or a tensor of one; it is read, which waits for a GPU, only when the bar is drawn.

        Raises:
            StopRequested: the user has asked to stop.
        """
        self._last = (epoch, loss)
        if (now := time.monotonic()) - self._drawn >= self._interval_seconds:
            self._drawn = now
            self._show_last()
        self._bar.update(steps)
        if _interrupt.requested:
            raise StopRequested

    def skip(self, steps: int) -> None:
        """Tells of ``steps`` that were done before, in a run that this one resumes."""
        self._bar.initial = steps
        self._bar.n = steps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._show_last()
        self._bar.close()

    def _show_last(self) -> None:
        if self._last is not None:
            epoch, loss = self._last
            self._bar.set_postfix(epoch=epoch, loss=f"{float(loss):.4f}", refresh=False)


class _Interrupt:
    """Whether Ctrl-C was pressed; one for the process, as the signal is."""

    requested = False


_interrupt = _Interrupt()


@contextmanager
def stopping_on_interrupt(message: str) -> Iterator[None]:
    """Makes the first Ctrl-C end the bars inside by ``StopRequested``, and the second end the program.

    Args:
        message: shown at the first.
    """
    if current_thread() is not main_thread():  # only the main thread may set a handler
        yield
        return

    def request(_signal: int, _frame: FrameType | None) -> None:
        _interrupt.requested = True
        signal.signal(signal.SIGINT, previous)
        sys.stderr.write(f"\n{message}\n")

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield
    finally:
        _interrupt.requested = False
        signal.signal(signal.SIGINT, previous)
