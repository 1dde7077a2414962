"""A published version again with other indexes, as a new version."""

import datetime as dt
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from google.protobuf import json_format
from safetensors import SafetensorError
from safetensors.numpy import load_file

from shortlist.v1 import manifest_pb2
from shortlist_trainer.errors import DataError
from shortlist_trainer.export.folder import (
    ITEM_INDEX,
    MANIFEST,
    NEIGHBOUR_INDEX,
    REPORT,
    build_indexes,
    file_entry,
    index_info,
    library_versions,
    seen_items,
    write_index,
    write_manifest,
)
from shortlist_trainer.export.format import FORMAT_VERSION
from shortlist_trainer.export.index import BuiltIndex, IndexGoal
from shortlist_trainer.export.publish import existing_version, publish
from shortlist_trainer.export.report.reindexed import with_other_indexes
from shortlist_trainer.models.base import Embeddings


def reindex(
    models_dir: Path, version: int | None, goal: IndexGoal, seed: int, say: Callable[[str], None]
) -> tuple[int, BuiltIndex, BuiltIndex]:
    """Publishes a version again with indexes that reach another goal; everything else stays as it is.

    Args:
        models_dir: the models folder.
        version: the version to begin with; None for the newest.
        goal: what the indexes shall reach.
        seed: draws the queries to measure on.
        say: is told how it goes.

    Returns:
        The number of the new version, its index for user -> items and the one for item -> items.

    Raises:
        ConfigError: there is no such version.
        DataError: it cannot be read, or one of its files is not what its manifest says.
        OSError: the new version cannot be written.
    """
    folder = models_dir / str(existing_version(models_dir, version))
    try:
        manifest = json_format.Parse((folder / MANIFEST).read_bytes(), manifest_pb2.ModelManifest())
        users, items = (load_file(folder / f"{side}_embeddings.safetensors")["embeddings"] for side in ("user", "item"))
        tensors = load_file(folder / "seen.safetensors")
        seen = seen_items(tensors["offsets"], tensors["items"])
    except (OSError, SafetensorError, json_format.ParseError, KeyError) as error:
        raise DataError(f"{folder} cannot be read: {error}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise DataError(f"{folder} is of format {manifest.format_version}, not {FORMAT_VERSION}")
    kept = [entry for entry in manifest.files if entry.name not in {ITEM_INDEX, NEIGHBOUR_INDEX, REPORT}]
    for entry in kept:
        if not (folder / entry.name).exists() or file_entry(folder / entry.name) != entry:
            raise DataError(f"{folder / entry.name} is not what {MANIFEST} says")
    bias_columns = manifest.bias_columns
    embeddings = Embeddings(users, items, "preference", bias_columns=bias_columns)
    built = build_indexes(embeddings, seen, seed, goal, say)

    def write(aside: Path, number: int) -> None:
        for entry in kept:
            _share(folder / entry.name, aside / entry.name)
        for index, name in zip(built, (ITEM_INDEX, NEIGHBOUR_INDEX), strict=True):
            write_index(index, aside / name)
        if (folder / REPORT).exists():
            html = (folder / REPORT).read_text(encoding="utf-8")
            html = with_other_indexes(html, manifest.version, number, *built)
            (aside / REPORT).write_text(html, encoding="utf-8", newline="\n")
        manifest.version = number
        manifest.created.FromDatetime(dt.datetime.now(dt.UTC))
        manifest.libraries["faiss-cpu"] = library_versions()["faiss-cpu"]
        manifest.item_index.CopyFrom(index_info(built[0]))
        manifest.neighbour_index.CopyFrom(index_info(built[1]))
        made = [file_entry(path) for path in aside.iterdir() if path.name not in {entry.name for entry in kept}]
        files = sorted([*kept, *made], key=lambda entry: entry.name)
        del manifest.files[:]
        manifest.files.extend(files)
        write_manifest(aside, manifest)

    return publish(models_dir, write), *built


def _share(source: Path, target: Path) -> None:
    """The same file under a second name, which is safe as no published file is ever changed; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
