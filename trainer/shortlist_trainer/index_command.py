"""``shortlist index``: tunes the indexes of a published model again, without training."""

import argparse
import sys
from pathlib import Path

# Nothing here imports torch or FAISS before a command runs, so that `shortlist --help` stays quick.


def add_index_options(parser: argparse.ArgumentParser) -> None:
    """Adds what indexes are chosen by."""
    options = parser.add_argument_group("indexes", "the cheapest that reaches the target; exact where none does")
    options.add_argument(
        "--recall-target",
        default="0.99@10",
        metavar="R@K",
        help="share of the true best K that an index must return",
    )
    options.add_argument(
        "--index-memory-mb", type=float, metavar="N", help="most that an index may take beside the embeddings"
    )


def add_index_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``index`` to ``shortlist``."""
    index = commands.add_parser(
        "index",
        help="tune the indexes of a published model again and publish it as a new version",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    index.set_defaults(run=_index, extra="trainer")
    index.add_argument("model", nargs="?", type=Path, metavar="MODELS_DIR/VERSION", help="instead of the next two")
    index.add_argument("--models-dir", type=Path, default=Path("models"), metavar="DIR", help="where versions are")
    index.add_argument("--version", type=int, metavar="N", help="which version; the newest, if not given")
    index.add_argument("--seed", type=int, default=42, help="draws the queries to measure on")
    add_index_options(index)


def _index(options: argparse.Namespace) -> int:
    from shortlist_trainer.errors import ConfigError, TrainerError
    from shortlist_trainer.export.index import parse_goal
    from shortlist_trainer.export.reindexing import reindex

    models_dir, version = options.models_dir, options.version
    try:
        if options.model is not None:
            name = options.model.resolve().name
            if not name.isdecimal():
                raise ConfigError(f"the model to index is given as MODELS_DIR/VERSION, not {str(options.model)!r}")
            models_dir, version = options.model.resolve().parent, int(name)
        goal = parse_goal(options.recall_target, options.index_memory_mb)
        published, items, neighbours = reindex(models_dir, version, goal, options.seed, _say)
    except (TrainerError, OSError) as error:
        sys.stderr.write(f"shortlist: {error}\n")
        return 1
    for name, index in (("user to items", items), ("item to items", neighbours)):
        recalls = ", ".join(f"recall@{k} {recall:.4f}" for k, recall in index.recalls.items())
        sys.stdout.write(f"{name}: {index.kind}, {recalls}: {index.why}\n")
    sys.stdout.write(f"published version {published} in {models_dir / str(published)}\n")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"shortlist: {text}\n")
