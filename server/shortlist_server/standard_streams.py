"""Standard input, output and error of a server, any of which may be closed or lead nowhere."""

import contextlib
import os
import sys
from pathlib import Path

_LAST = 2  # of the three descriptors


def open_those_closed() -> None:
    """Has the streams that are closed lead nowhere: a socket would get the number, and what is written to it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST:  # the lowest that is free
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - until the process ends


def say(line: str) -> None:
    """Writes a line to standard output at once, where somebody is there to read it and there is room for it."""
    with contextlib.suppress(OSError):  # whoever was to read it is gone, or the disk is full
        os.write(sys.stdout.fileno(), f"{line}\n".encode())
