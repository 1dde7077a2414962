"""``shortlist index``: a published version gets other indexes without training."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from shortlist_client import Client
from shortlist_client.main import main
from shortlist_trainer.errors import DataError
from shortlist_trainer.export.index import IndexGoal, unit_length
from shortlist_trainer.export.reindexing import reindex
from shortlist_trainer.models.base import Embeddings
from tests.running import serving
from tests.small_world import low_rank, publish_embeddings, random_dataset

GOAL = IndexGoal(recall=0.95, exact_below=0)


def published(models_dir: Path, rng: np.random.Generator, *, with_report: bool = False) -> tuple[Path, Embeddings]:
    vectors = low_rank(rng)
    dataset = random_dataset(400, 3_000, 5, rng)
    return publish_embeddings(models_dir, dataset, vectors, with_report=with_report), vectors


@pytest.mark.usefixtures("free_approximation", "quick_report")
def test_tuning_again_publishes_a_version_that_differs_in_its_indexes_alone_and_is_served(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    folder, vectors = published(tmp_path, rng, with_report=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    number, items, neighbours = reindex(tmp_path, None, GOAL, 0, lambda _: None)
    assert (number, items.kind == "flat", neighbours.kind == "flat") == (2, False, False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    again = tmp_path / "2"
    changed = {"items.faiss", "neighbours.faiss", "manifest.json", "report.html"}
    assert {path.name for path in again.iterdir() if path.read_bytes() != before[path.name]} == changed
    old, new = (json.loads((tmp_path / version / "manifest.json").read_text()) for version in ("1", "2"))
    assert {name for name in new if new[name] != old[name]} == {
        "version",
        "created",
        "item_index",
        "neighbour_index",
        "files",
        "manifest_sha256",
    }
    assert new["item_index"]["kind"] == items.kind
    goal = new["item_index"]["goal"]
    assert (goal["recall"], goal["k"], goal["met"]) == (0.95, 10, True)
    assert len(new["item_index"]["curve"]) == len(items.curve) > 5
    assert [point["kind"] for point in new["item_index"]["curve"] if point.get("chosen")] == [items.kind]
    with serving(tmp_path) as app, Client(app.address, timeout_seconds=20) as client:
        right = 0
        for user in range(40):
            answer = client.recommend(f"u{user}", k=10, exclude_seen=False)
            assert answer.model_version == 2
            scores = vectors.items @ vectors.users[user]
            right += len({item.id for item in answer.items} & {f"i{row}" for row in np.argsort(-scores)[:10]})
            for item in answer.items:
                assert item.score == pytest.approx(scores[int(item.id[1:])], abs=1e-4)
        assert right >= 0.9 * 400
        similar = client.similar_items("i7", k=10)
        unit = unit_length(vectors.items)
        best = set(np.argsort(-(unit @ unit[7]))[1:11].tolist())
        assert len({int(item.id[1:]) for item in similar.items} & best) >= 8


@pytest.mark.usefixtures("free_approximation", "quick_report")
def test_the_report_shows_the_new_curves_and_is_otherwise_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    published(tmp_path, rng, with_report=True)
    reindex(tmp_path, 1, GOAL, 0, lambda _: None)
    reindex(tmp_path, 2, GOAL, 0, lambda _: None)
    first, second, third = ((tmp_path / version / "report.html").read_text() for version in ("1", "2", "3"))
    assert first.count("recall against speed") == 0  # a small catalogue has no curve
    assert second.count("recall against speed: up and to the right") == 2
    assert "Tuned again from version 1" in second
    assert "Tuned again from version 2" in third
    assert "Tuned again from version 1" not in third
    assert "<title>made, version 3</title>" in third
    for page in (first, second, third):
        assert page.count('<section id="indexes">') == 1
        assert page.count('id="index-recall"') == 1
    outside = [page[: page.index('<section id="indexes">')].split("</header>")[1] for page in (first, second, third)]
    assert outside[0] == outside[1] == outside[2]


def test_a_version_with_a_changed_file_is_not_tuned_again(tmp_path: Path, rng: np.random.Generator) -> None:
    folder, _ = published(tmp_path, rng)
    content = bytearray((folder / "seen.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "seen.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"seen\.safetensors is not what manifest\.json says"):
        reindex(tmp_path, 1, GOAL, 0, lambda _: None)
    assert [path.name for path in tmp_path.iterdir() if path.name.isdecimal()] == ["1"]


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    code = main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def test_the_command_takes_a_folder_or_a_number(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = published(tmp_path, rng)
    code, out, _ = run("index", str(folder), "--recall-target", "0.9@20", monkeypatch=monkeypatch)
    assert code == 0
    assert f"published version 2 in {tmp_path / '2'}" in out
    assert "user to items: flat, recall@10 1.0000, recall@20 1.0000, recall@100 1.0000" in out
    code, out, _ = run("index", "--models-dir", str(tmp_path), "--version", "1", monkeypatch=monkeypatch)
    assert (code, "published version 3" in out) == (0, True)
    goals = [json.loads((tmp_path / v / "manifest.json").read_text())["item_index"]["goal"] for v in ("2", "3")]
    assert [(goal["recall"], goal["k"]) for goal in goals] == [(0.9, 20), (0.99, 10)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recall-target", "best"], "--recall-target takes"),
        (["--index-memory-mb", "0"], "--index-memory-mb takes"),
        (["--version", "9"], "holds no version 9; it holds 1"),
        (["models/newest"], "MODELS_DIR/VERSION"),
    ],
)
def test_the_command_refuses_what_is_not_there(
    small_models: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    code, _, err = run("index", "--models-dir", str(small_models), *arguments, monkeypatch=monkeypatch)
    assert code == 1
    assert message in err


def test_training_refuses_a_bad_target_before_it_reads_data(monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run("train", "--data", "nowhere", "--recall-target", "0.99", monkeypatch=monkeypatch)
    assert (code, "--recall-target takes" in err) == (1, True)
