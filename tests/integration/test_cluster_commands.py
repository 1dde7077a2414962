"""``shortlist clusters``: what a published model's clusters look like, read without a server."""

import json
import shutil
from pathlib import Path

import pytest

from tests.contract.make_golden import GOLDEN
from tests.running import shortlist
from tests.small_world import publish_embeddings, two_tastes


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one version of two tastes."""
    folder = tmp_path_factory.mktemp("tastes") / "models"
    publish_embeddings(folder, *two_tastes(), user_clusters=2, item_clusters=2)
    return folder


def table(lines: list[str]) -> list[list[str]]:
    return [line.split(maxsplit=3) for line in lines]


def test_item_clusters_are_listed_with_their_most_touched_titles(models_dir: Path) -> None:
    told = shortlist("clusters", "items", "--models-dir", str(models_dir), "--top", "3")
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines() == [
        "version 1 (made): 2 item clusters, as asked for; mean silhouette 0.99; in none, for want of interactions: 1",
        "",
        "item cluster 0: 4 items",
        "  touched by  id       title",
        "           4  blade    Title of blade",
        "           3  alien    Title of alien",
        "           3  contact  Title of contact",
        "",
        "item cluster 1: 3 items",
        "  touched by  id       title",
        "           4  daisy    Title of daisy",
        "           3  emma     Title of emma",
        "           1  obscure  Title of obscure",
    ]


def test_user_clusters_are_listed_with_the_titles_they_rate_best(models_dir: Path) -> None:
    told = shortlist("clusters", "users", "--models-dir", str(models_dir), "--version", "1")
    assert told.returncode == 0, told.stderr
    first, second = told.stdout.split("\n\n")[1:]
    assert first.splitlines()[0] == "user cluster 0: 9 users; items that at least 3 of them rated"
    assert table(first.splitlines()[2:]) == [
        ["4.000", "4", "blade", "Title of blade"],
        ["4.000", "3", "alien", "Title of alien"],
        ["1.500", "3", "contact", "Title of contact"],
    ]
    assert second.splitlines()[0] == "user cluster 1: 4 users; items that at least 2 of them rated"
    assert table(second.splitlines()[2:]) == [
        ["4.667", "3", "emma", "Title of emma"],
        ["2.500", "2", "daisy", "Title of daisy"],
    ]


@pytest.mark.parametrize(
    ("user", "label", "own", "expected"),
    [
        ("a0", 0, 3, ["blade"]),  # alien, contact and daisy are a0's own
        ("a2", 0, 1, ["blade", "contact"]),
        ("b2", 1, 1, ["daisy"]),
    ],
)
def test_a_user_gets_what_the_cluster_likes_best_and_the_user_has_not_touched(
    models_dir: Path, user: str, label: int, own: int, expected: list[str]
) -> None:
    told = shortlist("clusters", "users", "--user", user, "--models-dir", str(models_dir))
    lines = told.stdout.splitlines()
    assert lines[2] == f"user {user} is in user cluster {label}; the user's own {own} items are left out"
    assert [line[2] for line in table(lines[5:])] == expected
    best = shortlist("clusters", "users", "--user", user, "--models-dir", str(models_dir), "--top", "1").stdout
    assert best.splitlines() == lines[:6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["users", "--user", "stranger"], "the model knows no user 'stranger'"),
        (["users", "--user", "lurker"], "user 'lurker' has no interactions and therefore no cluster"),
        (["items", "--version", "7"], "holds no version 7"),
        (["items", "--models-dir", "{elsewhere}"], "there is no models folder"),
        (["items", "--models-dir", "{golden}"], "has no clusters; train the model again to have them"),
        (["items", "--models-dir", "{broken}"], "cannot be read"),
        (["items", "--models-dir", "{empty}"], "holds no version; `shortlist train` publishes one"),
    ],
)
def test_clusters_that_cannot_be_shown_say_why(
    models_dir: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    shutil.copytree(models_dir, tmp_path / "broken")
    (tmp_path / "broken" / "1" / "clusters.safetensors").write_bytes(b"short")
    (tmp_path / "empty").mkdir()
    folders = {"elsewhere": tmp_path / "no", "golden": GOLDEN / "format_1", "broken": tmp_path / "broken"}
    given = [argument.format(**folders, empty=tmp_path / "empty") for argument in arguments]
    told = shortlist("clusters", *given, *([] if "--models-dir" in given else ["--models-dir", str(models_dir)]))
    assert (told.returncode, told.stdout) == (1, "")
    assert message in told.stderr
    assert "Traceback" not in told.stderr


def test_training_makes_as_many_clusters_as_asked_for_and_without_ratings_ranks_by_share(tmp_path: Path) -> None:
    rows = [f"c{user},p{item}" for user in range(30) for item in range(20) if (user + item) % 3 == 0]
    (tmp_path / "bought.csv").write_text("user,item\n" + "\n".join(rows) + "\n")
    train = ["train", "--data", str(tmp_path / "bought.csv"), "--models-dir", str(tmp_path / "models")]
    quick = ["--set", "embedding_size=4", "--set", "epochs=2"]
    refused = shortlist(*train, *quick, "--user-clusters", "31")
    assert (refused.returncode, refused.stderr) == (1, "shortlist: user clusters must number 1 to 30, not 31\n")
    trained = shortlist(*train, *quick, "--user-clusters", "3", "--item-clusters", "2")
    assert trained.returncode == 0, trained.stderr
    described = json.loads((tmp_path / "models" / "1" / "manifest.json").read_text())["clusters"]
    assert [(described[side]["count"], described[side]["chosen_by"]) for side in ("users", "items")] == [
        (3, "given"),
        (2, "given"),
    ]
    assert described["ranking"] == "CLUSTER_RANKING_SHARE"
    told = shortlist("clusters", "users", "--models-dir", str(tmp_path / "models")).stdout
    # Every third user bought the same: three clusters of ten, and of each cluster everybody bought each item.
    assert "user cluster 2: 10 users; items that at least 4 of them touched" in told
    assert "       1.000       10  p" in told
