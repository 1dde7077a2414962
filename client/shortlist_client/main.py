"""The ``shortlist`` command: gathers the commands of every part that is installed and runs one."""

import argparse
import io
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points, version

COMMANDS_GROUP = "shortlist.commands"
"""Entry points of this group are called with the parser's subcommands and add theirs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 it could not be done, 2 wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a title that the terminal cannot show shall not end the answer
    parser = argparse.ArgumentParser(
        prog="shortlist", description="Train recommendation models, serve them over gRPC and ask them."
    )
    parser.add_argument("--version", action="version", version=f"shortlist {version('shortlist')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for part in sorted(entry_points(group=COMMANDS_GROUP), key=lambda entry: entry.name):
        part.load()(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except ModuleNotFoundError as error:
        # Parts import what only they need when they run; the base install is the client alone.
        extra = getattr(options, "extra", None)
        if extra is None or (error.name or "").startswith("shortlist"):
            raise
        sys.stderr.write(f"shortlist: this command needs {error.name}; pip install 'shortlist[{extra}]' brings it\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("shortlist: stopped\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
