"""``shortlist clusters``: reads the clusters of a published model, without a server."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# Nothing here imports pandas, pyarrow or scikit-learn before a command runs, so that `shortlist --help` stays quick.
if TYPE_CHECKING:
    from shortlist_trainer.export.published import ListedCluster, PublishedClusters

_TITLE_WIDTH = 60


def add_cluster_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``clusters items`` and ``clusters users`` to ``shortlist``."""
    clusters = commands.add_parser("clusters", help="the groups of alike items or users in a published model")
    kinds = clusters.add_subparsers(title="clusters commands", metavar="COMMAND", required=True)
    items = kinds.add_parser("items", help="every item cluster with its items of most interactions")
    items.set_defaults(run=_items, extra="trainer")
    users = kinds.add_parser("users", help="every user cluster with the items it likes best, or one user's")
    users.set_defaults(run=_users, extra="trainer")
    users.add_argument("--user", metavar="ID", help="recommend from this user's cluster, the user's own items left out")
    for parser in (items, users):
        parser.add_argument(
            "--models-dir", type=Path, default=Path("models"), metavar="DIR", help="where versions are; default: models"
        )
        parser.add_argument("--version", type=int, metavar="N", help="which version (default: the newest)")
        parser.add_argument("--top", type=_positive, default=10, metavar="N", help="items to list (default: 10)")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def _items(options: argparse.Namespace) -> int:
    from shortlist_trainer.errors import TrainerError
    from shortlist_trainer.export.published import PublishedClusters

    try:
        published = PublishedClusters(options.models_dir, options.version)
        clusters = published.of_items(options.top)
    except TrainerError as error:
        return _fail(error)
    _print_title(published, "item")
    for cluster in clusters:
        _print(f"\nitem cluster {cluster.label}: {cluster.size:,} items")
        _print(f"{'touched by':>12}  {'id':<8} title")
        for item in cluster.items:
            _print(f"{item.support:>12,}  {item.item_id:<8} {item.title[:_TITLE_WIDTH]}".rstrip())
    return 0


def _users(options: argparse.Namespace) -> int:
    from shortlist_trainer.errors import TrainerError
    from shortlist_trainer.export.published import PublishedClusters

    try:
        published = PublishedClusters(options.models_dir, options.version)
        if options.user is not None:
            cluster, own = published.for_user(options.user, options.top)
        else:
            clusters = published.of_users(options.top)
    except TrainerError as error:
        return _fail(error)
    _print_title(published, "user")
    if options.user is not None:
        _print(f"\nuser {options.user} is in user cluster {cluster.label}; the user's own {own:,} items are left out")
        _print_user_cluster(published, cluster)
        return 0
    for cluster in clusters:
        _print("")
        _print_user_cluster(published, cluster)
    return 0


def _print_title(published: "PublishedClusters", side: str) -> None:
    manifest = published.manifest
    clustering = manifest.clusters.users if side == "user" else manifest.clusters.items
    how = {"given": "as asked for", "silhouette": "the number of the best silhouette"}
    chosen = how.get(clustering.chosen_by, "the usual number, as no other stands out")
    left_out = f"; in none, for want of interactions: {clustering.unclustered:,}" if clustering.unclustered else ""
    _print(
        f"version {manifest.version} ({manifest.model_name}): {clustering.count} {side} clusters, {chosen}; "
        f"mean silhouette {clustering.silhouette:.2f}{left_out}"
    )


def _print_user_cluster(published: "PublishedClusters", cluster: "ListedCluster") -> None:
    from shortlist.v1 import manifest_pb2

    rated = published.manifest.clusters.ranking == manifest_pb2.CLUSTER_RANKING_MEAN_RATING
    score, support = ("mean rating", "ratings") if rated else ("share", "users")
    _print(
        f"user cluster {cluster.label}: {cluster.size:,} users; "
        f"items that at least {cluster.minimum_support:,} of them {'rated' if rated else 'touched'}"
    )
    _print(f"{score:>12} {support:>8}  {'id':<8} title")
    for item in cluster.items:
        _print(f"{item.score:>12.3f} {item.support:>8,}  {item.item_id:<8} {item.title[:_TITLE_WIDTH]}".rstrip())


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _fail(error: Exception) -> int:
    sys.stderr.write(f"shortlist: {error}\n")
    return 1
