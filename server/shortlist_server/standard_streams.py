"""What a server says on standard output, which may lead nowhere."""

import contextlib
import os
import sys


def say(line: str) -> None:
    """Writes a line to standard output at once, where somebody is there to read it and there is room for it."""
    with contextlib.suppress(OSError):  # whoever was to read it is gone, or the disk is full
        os.write(sys.stdout.fileno(), f"{line}\n".encode())
