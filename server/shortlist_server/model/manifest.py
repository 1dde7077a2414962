"""What a model folder says of itself: docs/model-format.md describes the file."""

import hashlib
import json
from pathlib import Path

from google.protobuf import json_format

from shortlist.v1 import manifest_pb2
from shortlist_server.errors import BadModel, unreadable
from shortlist_server.model.versions import read_file

FORMAT_VERSION = 1
"""The newest format this server reads."""

MANIFEST = "manifest.json"

_MOST_BYTES = 4 << 20
"""It is parsed as a whole, whenever versions are listed. Those that are published have some 20 KB."""


def read_manifest(folder: Path) -> manifest_pb2.ModelManifest:
    """The manifest of a folder, of a format this server reads.

    Raises:
        BadModel: it is missing, unreadable, of another version than the folder's name or of a newer format.
    """
    try:
        text = read_file(folder / MANIFEST, _MOST_BYTES)
        manifest = json_format.Parse(text, manifest_pb2.ModelManifest())
    except OSError as error:
        raise unreadable(MANIFEST, error) from error
    except (json_format.ParseError, ValueError, RecursionError) as error:
        newer = _newer_format(text)
        raise BadModel(newer or f"{MANIFEST} cannot be read: {error}") from error
    if not text.endswith(b"\n"):  # where more than that is missing, it is no JSON
        raise BadModel(f"{MANIFEST} does not end with a line feed: its end is missing")
    if manifest.format_version != FORMAT_VERSION:
        raise BadModel(
            f"{MANIFEST}: format {manifest.format_version}, but this server reads format {FORMAT_VERSION} only"
        )
    if str(manifest.version) != folder.name:
        raise BadModel(f"{MANIFEST}: version {manifest.version}, but the folder is {folder.name}")
    # The name of the folder vouches for the version, so that a folder may be copied to another number.
    if manifest.manifest_sha256 and manifest.manifest_sha256 != _manifest_checksum(text):
        raise BadModel(f"{MANIFEST} does not match its own checksum")
    return manifest


def listed_files(folder: Path) -> list[str]:
    """The names of files that a manifest lists, whatever else it says: more quickly than it is read as a whole.

    Raises:
        BadModel: it lists none.
    """
    try:
        return [str(entry["name"]) for entry in json.loads(read_file(folder / MANIFEST, _MOST_BYTES))["files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadModel(f"{MANIFEST} lists no files: {error}") from error


def _manifest_checksum(text: bytes) -> str:
    """The checksum that docs/model-format.md describes."""
    rest = {name: value for name, value in json.loads(text).items() if name not in ("version", "manifest_sha256")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _newer_format(text: bytes) -> str | None:
    """The reason when a manifest does not parse because its format has fields this server does not know."""
    manifest = manifest_pb2.ModelManifest()
    try:
        json_format.Parse(text, manifest, ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, RecursionError):
        return None
    if manifest.format_version <= FORMAT_VERSION:
        return None
    return f"{MANIFEST}: format {manifest.format_version}, but this server reads format {FORMAT_VERSION} only"
