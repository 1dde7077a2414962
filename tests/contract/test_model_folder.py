"""The model folder: what the trainer writes the server reads, old formats load, damaged folders are refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save

from shortlist_server.errors import BadModel, NoClusters
from shortlist_server.model.folder import (
    CLUSTERS,
    ITEM_ATTRIBUTES,
    ITEM_EMBEDDINGS,
    REQUIRED,
    USER_EMBEDDINGS,
    load_model,
)
from shortlist_server.model.manifest import MANIFEST
from shortlist_server.retrieval.queries import ClusterKind, ClusterQuery, Fallback, RecommendQuery, SimilarItemsQuery
from shortlist_trainer.models.base import Ranker
from tests.contract.make_golden import GOLDEN
from tests.running import only
from tests.searching import Search, found_by
from tests.small_world import publish_embeddings, random_dataset, random_embeddings
from tests.versions import change_manifest

SEEN_ITEMS = 774  # interactions of ``small_models``


def test_format_1_still_loads_and_answers_as_computed_by_hand() -> None:
    model = load_model(GOLDEN / "format_1" / "1", "cpu")
    recommender = model.recommender
    # cleo is [1, 1, 1] with bias -0.5: a = 4 + 0 + .5, b = 4, c = 2.25, d = 2 (seen), e = 1.5; each + 3 - 0.5.
    ranking = only(recommender.recommend([RecommendQuery("cleo", k=5)]))
    assert recommender.item_ids.ids(ranking.rows.tolist()) == ["a", "b", "c", "e"]
    np.testing.assert_allclose(ranking.scores, [7.0, 6.5, 4.75, 4.0])
    # Without the bias column a and b are [4, 0] and [3, 1]: cosine 3 / sqrt(10).
    neighbours = only(recommender.similar_items([SimilarItemsQuery(["a"], k=2)]))
    assert recommender.item_ids.ids(neighbours.rows.tolist()) == ["b", "c"]
    np.testing.assert_allclose(neighbours.scores, [3 / 10**0.5, 1 / 2**0.5], rtol=1e-6)
    np.testing.assert_allclose(recommender.score("dan", ["e", "a"]), [-5.5 + 4, 8.5 + 4])
    assert recommender.attributes.values("genres", np.array([0, 1])) == [["Comedy", "Crime"], ["Drama"]]
    assert recommender.attributes.values("year", np.array([0, 1])) == [None, 1991]
    assert recommender.popularity.tolist() == [2, 1, 1, 1, 1]
    assert model.manifest.model_name == "golden"


def test_a_folder_of_format_1_without_clusters_answers_everything_but_clusters() -> None:
    recommender = load_model(GOLDEN / "format_1" / "1", "cpu").recommender
    assert not (GOLDEN / "format_1" / "1" / CLUSTERS).exists()
    ask: list[Callable[[], object]] = [
        lambda: recommender.all_clusters(ClusterKind.ITEM, 3),
        lambda: recommender.cluster(ClusterQuery(ClusterKind.USER, "ann")),
        lambda: only(recommender.recommend([RecommendQuery("stranger", fallback=Fallback.CLUSTER)])),
    ]
    for call in ask:
        with pytest.raises(NoClusters, match="the model has no clusters; one that is trained again will have them"):
            call()
    assert len(only(recommender.recommend([RecommendQuery("ann", k=2, fallback=Fallback.CLUSTER)])).rows) == 2


def test_a_folder_with_a_ranker_loads_and_its_vectors_answer(tmp_path: Path, rng: np.random.Generator) -> None:
    dataset, embeddings = random_dataset(15, 60, 6, rng), random_embeddings(15, 60, 5, rng)
    tensors = {
        "bias": np.array([0.5], np.float32),
        "mlp.user_embeddings": np.ones((15, 2), np.float32),
        "mlp.item_embeddings": np.arange(60, dtype=np.float32)[:, None],
        "mlp.layers.0.weight": np.array([[1, 2, 3]], np.float32),
        "mlp.layers.0.bias": np.array([4], np.float32),
        "mlp.slope": np.zeros(1, np.float32),
    }
    folder = publish_embeddings(tmp_path, dataset, embeddings, ranker=Ranker("mlp", tensors))
    model = load_model(folder, "cpu")
    assert model.manifest.ranker.architecture == "mlp"
    assert model.recommender.ranker is not None
    assert model.recommender.ranker.score(np.array([3]), np.array([[0, 10]])).tolist() == [[7.5, 37.5]]
    written = load_file(folder / "ranker.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)
    scores = model.recommender.score(dataset.user_ids[3], dataset.item_ids)
    np.testing.assert_allclose(scores, embeddings.items @ embeddings.users[3], atol=1e-4)
    (folder / "ranker.safetensors").write_bytes(b"damaged")
    with pytest.raises(BadModel, match=r"ranker\.safetensors"):
        load_model(folder, "cpu")


def test_a_folder_without_a_ranker_says_so(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = publish_embeddings(tmp_path, random_dataset(15, 60, 6, rng), random_embeddings(15, 60, 5, rng))
    assert not (folder / "ranker.safetensors").exists()
    assert not load_model(folder, "cpu").manifest.HasField("ranker")


@pytest.mark.parametrize("biased", [False, True])
def test_what_the_trainer_writes_the_server_reads(tmp_path: Path, rng: np.random.Generator, *, biased: bool) -> None:
    dataset = random_dataset(15, 60, 6, rng)
    embeddings = random_embeddings(15, 60, 5, rng, biased=biased)
    model = load_model(publish_embeddings(tmp_path, dataset, embeddings), "cpu")
    recommender = model.recommender
    assert recommender.user_ids.ids(range(15)) == dataset.user_ids
    assert recommender.item_ids.rows(dataset.item_ids).tolist() == list(range(60))
    bias = embeddings.user_bias[:, None] if embeddings.user_bias is not None else 0
    expected = embeddings.users @ embeddings.items.T + bias + embeddings.score_constant
    for row, user in enumerate(dataset.user_ids):
        np.testing.assert_allclose(recommender.score(user, dataset.item_ids), expected[row], atol=1e-4)
        seen = dataset.interactions.items[dataset.interactions.users == row]
        assert recommender.seen.of(row).tolist() == seen.tolist()
    assert model.manifest.training_data.fingerprint == dataset.fingerprint()
    assert {recall.k: recall.recall for recall in model.manifest.item_index.recalls} == {10: 1.0, 100: 1.0}


@pytest.mark.parametrize("name", [*REQUIRED, CLUSTERS])
def test_a_missing_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadModel, match=f"{name} is missing"):
        load_model(folder, "cpu")


@pytest.mark.parametrize("name", [*REQUIRED, CLUSTERS])
def test_a_truncated_file_is_refused_by_name(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(BadModel, match=f"{name} has .* bytes"):
        load_model(folder, "cpu")


@pytest.mark.parametrize("name", [*REQUIRED, CLUSTERS])
def test_a_flipped_bit_is_refused_by_name(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BadModel, match=f"{name} does not match its checksum"):
        load_model(folder, "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format 2, but this server reads format 1 only"),
        ({"format_version": 2, "what_format_2_has": {}}, "format 2, but this server reads format 1 only"),
        ({"surprise": 1}, "cannot be read"),
        ({"version": "9"}, "version 9, but the folder is 1"),
        ({"user_count": "31"}, r"user_embeddings\.safetensors has embeddings of shape \(30, 9\)"),
        ({"item_count": "199"}, r"item_embeddings\.safetensors has embeddings of shape \(200, 9\)"),
        ({"embedding_size": 8}, "has embeddings of shape"),
        ({"bias_columns": 0}, r"neighbours\.faiss indexes vectors of shape \(200, 8\)"),
        ({"files": []}, r"does not list user_embeddings\.safetensors"),
        (
            {"files": [{"name": "../1/items.faiss", "size_bytes": "1", "sha256": ""}]},
            r"does not list user_embeddings\.safetensors",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    change_manifest(folder, **changes)
    with pytest.raises(BadModel, match=message):
        load_model(folder, "cpu")


def test_a_manifest_that_names_a_file_elsewhere_is_refused(folder: Path) -> None:
    files = json.loads((folder / MANIFEST).read_text())["files"]
    change_manifest(folder, files=[*files, {"name": "../secret", "size_bytes": "1", "sha256": ""}])
    with pytest.raises(BadModel, match="not a plain file name"):
        load_model(folder, "cpu")


def test_a_manifest_in_which_a_figure_was_changed_is_refused_but_may_be_of_another_number(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    assert '"score_constant": 3.5' in text
    (folder / MANIFEST).write_text(text.replace('"score_constant": 3.5', '"score_constant": 3.7'))
    with pytest.raises(BadModel, match=r"manifest\.json does not match its own checksum"):
        load_model(folder, "cpu")
    (folder / MANIFEST).write_text(text.replace('"version": "1"', '"version": "12"'))
    assert load_model(folder.rename(folder.parent / "12"), "cpu").version == 12


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format_version": "many"}'])
def test_a_manifest_that_is_no_manifest_is_refused(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content)
    with pytest.raises(BadModel, match=MANIFEST):
        load_model(folder, "cpu")


def test_a_manifest_whose_last_byte_is_missing_is_refused(folder: Path) -> None:
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:-1])
    with pytest.raises(BadModel, match=r"^manifest\.json .* its end is missing"):
        load_model(folder, "cpu")


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Changes a file and its entry in the manifest, so that the checksum fits."""
    (folder / name).write_bytes(content)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    for entry in files:
        if entry["name"] == name:
            entry.update(size_bytes=str(len(content)), sha256=hashlib.sha256(content).hexdigest())
    change_manifest(folder, files=files)


def tensors_with(folder: Path, name: str, **changes: npt.NDArray[Any]) -> bytes:
    return save({**load_file(folder / name), **changes})


def l2_index() -> bytes:
    index = faiss.IndexFlatL2(9)
    index.add(np.zeros((200, 9), np.float32))
    return bytes(faiss.serialize_index(index).tobytes())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("seen.safetensors", {"items": np.full(SEEN_ITEMS, 200, np.int32)}, "names items that the model lacks"),
        ("seen.safetensors", {"items": np.zeros(3, np.int32)}, "offsets that do not fit its items"),
        ("seen.safetensors", {"items": np.zeros(SEEN_ITEMS, np.int32)}, "not ascending within a user"),
        ("seen.safetensors", {"offsets": np.zeros(5, np.int64)}, "another number of users"),
        ("user_ids.safetensors", {"text": np.zeros(3, np.uint8)}, "offsets that do not fit its text"),
        ("item_ids.safetensors", {"rows": np.zeros(3, np.uint32)}, "is for .* rows"),
        ("user_embeddings.safetensors", {"bias": np.zeros(3, np.float32)}, "biases of another length"),
        ("clusters.safetensors", {"user_labels": np.zeros(29, np.int32)}, "another number of users"),
        ("clusters.safetensors", {"item_labels": np.zeros(201, np.int32)}, "another number of items"),
        ("clusters.safetensors", {"user_labels": np.full(30, 3, np.int32)}, "user labels that do not fit its sizes"),
        ("clusters.safetensors", {"user_labels": np.full(30, -2, np.int32)}, "user labels that do not fit its sizes"),
        ("clusters.safetensors", {"item_sizes": np.zeros(2, np.int64)}, "another number of item clusters"),
        ("clusters.safetensors", {"ranked_offsets": np.zeros(3, np.int64)}, "ranks items for another number"),
        ("clusters.safetensors", {"ranked_offsets": np.full(4, 7, np.int64)}, "offsets that do not fit its items"),
        ("clusters.safetensors", {"ranked_scores": np.zeros(1, np.float32)}, "offsets that do not fit its items"),
    ],
)
def test_files_that_do_not_fit_one_another_are_refused_even_with_right_checksums(
    folder: Path, name: str, change: dict[str, npt.NDArray[Any]], message: str
) -> None:
    rewrite(folder, name, tensors_with(folder, name, **change))
    with pytest.raises(BadModel, match=f"{name} .*{message}"):
        load_model(folder, "cpu")


def test_attributes_whose_name_is_no_text_are_refused(folder: Path) -> None:
    content = (folder / ITEM_ATTRIBUTES).read_bytes()
    assert b"classic" in content
    rewrite(folder, ITEM_ATTRIBUTES, content.replace(b"classic", b"\xe3lassic"))
    with pytest.raises(BadModel, match=f"{ITEM_ATTRIBUTES} is not a readable Arrow file"):
        load_model(folder, "cpu")


@pytest.mark.parametrize("row", [-1, 200])
def test_clusters_that_rank_items_which_are_not_there_or_from_offsets_out_of_order_are_refused(
    folder: Path, row: int
) -> None:
    tensors = load_file(folder / CLUSTERS)
    rewrite(folder, CLUSTERS, tensors_with(folder, CLUSTERS, ranked_offsets=tensors["ranked_offsets"][[0, 2, 1, 3]]))
    with pytest.raises(BadModel, match="offsets that do not fit its items"):
        load_model(folder, "cpu")
    rewrite(folder, CLUSTERS, save(tensors | {"ranked_items": np.full_like(tensors["ranked_items"], row)}))
    with pytest.raises(BadModel, match="names items that the model lacks"):
        load_model(folder, "cpu")


def test_a_manifest_that_speaks_of_clusters_without_their_file_is_refused(folder: Path) -> None:
    files = json.loads((folder / MANIFEST).read_text())["files"]
    change_manifest(folder, files=[entry for entry in files if entry["name"] != CLUSTERS])
    with pytest.raises(BadModel, match=f"does not list {CLUSTERS}"):
        load_model(folder, "cpu")


def test_an_index_by_distance_or_with_unknown_parameters_is_refused(folder: Path) -> None:
    change_manifest(folder, item_index={"kind": "flat", "search_parameters": {"ef": 3}})
    with pytest.raises(BadModel, match="does not know"):
        load_model(folder, "cpu")
    rewrite(folder, "items.faiss", l2_index())
    with pytest.raises(BadModel, match="not an inner-product index"):
        load_model(folder, "cpu")


def test_the_manifests_search_parameters_are_searched_with(tmp_path: Path, rng: np.random.Generator) -> None:
    embeddings = random_embeddings(20, 2_000, 8, rng)
    folder = publish_embeddings(tmp_path / "models", random_dataset(20, 2_000, 5, rng), embeddings)
    ivf = faiss.index_factory(8, "IVF50,Flat", faiss.METRIC_INNER_PRODUCT)
    ivf.train(embeddings.items)
    ivf.add(embeddings.items)
    rewrite(folder, "items.faiss", bytes(faiss.serialize_index(ivf).tobytes()))

    def found_with(nprobe: int, **more: object) -> int:
        # Written as before there were transforms, goals and curves.
        change_manifest(folder, item_index={"kind": "ivf", "search_parameters": {"nprobe": nprobe}, **more})
        recommender = load_model(folder, "cpu").recommender
        return sum(
            len(set(found.rows) & best)
            for found, best in zip(
                found_by(recommender.items, [Search(user, 10) for user in users]), truth, strict=True
            )
        )

    users = embeddings.users
    truth = [set(np.argsort(-(embeddings.items @ user))[:10].tolist()) for user in users]
    assert found_with(1) < found_with(50) == 200
    # A search for more than it was tuned for looks further, and scores every item where that takes less.
    assert found_with(1) < found_with(1, goal={"recall": 0.5, "k": 1}) < 200
    assert found_with(1, scan_cost=0.5) == 200


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize(
    ("name", "array"),
    [(USER_EMBEDDINGS, "embeddings"), (ITEM_EMBEDDINGS, "embeddings"), (ITEM_EMBEDDINGS, "bias")],
)
def test_tables_with_numbers_that_make_no_score_are_refused_by_name_and_row(
    folder: Path, name: str, array: str, number: float
) -> None:
    rows = 30 if name == USER_EMBEDDINGS else 200
    table = load_file(folder / name).get(array, np.zeros(rows, np.float32)).copy()
    table[17, ...] = number
    rewrite(folder, name, tensors_with(folder, name, **{array: table}))
    with pytest.raises(BadModel, match=rf"{name} holds numbers that are not finite, or beyond 1e\+15, first in row 17"):
        load_model(folder, "cpu")


def test_users_in_float16_may_be_as_large_as_these_get_but_not_infinite(folder: Path) -> None:
    table = np.full((30, load_file(folder / USER_EMBEDDINGS)["embeddings"].shape[1]), 65_504, np.float16)
    rewrite(folder, USER_EMBEDDINGS, tensors_with(folder, USER_EMBEDDINGS, embeddings=table))
    load_model(folder, "cpu")
    table[2, 1] = np.inf
    rewrite(folder, USER_EMBEDDINGS, tensors_with(folder, USER_EMBEDDINGS, embeddings=table))
    with pytest.raises(BadModel, match="first in row 2"):
        load_model(folder, "cpu")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", 1e30])
def test_a_constant_that_makes_no_score_is_refused(folder: Path, constant: object) -> None:
    change_manifest(folder, scoreConstant=constant)
    with pytest.raises(BadModel, match="score_constant must lie within"):
        load_model(folder, "cpu")


def test_a_manifest_too_large_to_be_parsed_again_and_again_is_refused(folder: Path) -> None:
    with (folder / MANIFEST).open("ab") as manifest:
        manifest.write(b" " * (4 << 20))
    with pytest.raises(BadModel, match=r"manifest\.json cannot be read: it has more than 4,194,304 bytes"):
        load_model(folder, "cpu")
