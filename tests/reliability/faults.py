"""What a disk, a copy or a bug may make of a file."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shortlist_server.model.manifest import MANIFEST

Fault = Callable[[bytes, np.random.Generator], bytes | None]
"""From a file's content to what becomes of it; None for no file."""

_PAGE = 4096
_HEAD = 400  # where lengths and types stand, which most of a large file is not


def _place(content: bytes, rng: np.random.Generator) -> int:
    """A byte of the file; every other time one near its beginning."""
    return int(rng.integers(min(len(content), _HEAD if rng.random() < 0.5 else len(content))))


def _missing(content: bytes, rng: np.random.Generator) -> None:
    return None


def _empty(content: bytes, rng: np.random.Generator) -> bytes:
    return b""


def _truncated(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: _place(content, rng)]


def _bit_flipped(content: bytes, rng: np.random.Generator) -> bytes:
    place = _place(content, rng)
    return content[:place] + bytes([content[place] ^ 1 << int(rng.integers(8))]) + content[place + 1 :]


def _page_lost(content: bytes, rng: np.random.Generator) -> bytes:
    """Zeros where a page was, at least one byte of which was none."""
    place = next(place for place in iter(lambda: _place(content, rng), None) if content[place])
    begin = place // _PAGE * _PAGE
    return content[:begin] + bytes(len(content[begin : begin + _PAGE])) + content[begin + _PAGE :]


def _longer(content: bytes, rng: np.random.Generator) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 100)))


def _number_changed(content: bytes, rng: np.random.Generator) -> bytes:
    """Four or eight bytes that were perhaps a length, an offset or an id."""
    place, size = _place(content, rng), int(rng.choice([4, 8]))
    value = int(rng.choice([0, 1, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, int(rng.integers(1 << 32))]))
    changed = content[:place] + value.to_bytes(size, "little") + content[place + size :]
    return changed[: len(content)]


FAULTS: dict[str, Fault] = {
    "missing": _missing,
    "empty": _empty,
    "truncated": _truncated,
    "bit flipped": _bit_flipped,
    "page lost": _page_lost,
    "longer": _longer,
}
"""What a checksum must notice."""

UNNOTICED: dict[str, Fault] = {
    "truncated": _truncated,
    "bit flipped": _bit_flipped,
    "page lost": _page_lost,
    "number changed": _number_changed,
}
"""What is left of a file whose checksum was taken when it was bad already."""


def damage(path: Path, fault: Fault, rng: np.random.Generator) -> None:
    """Does to a file what is named; it is another file then, as others may be linked to it."""
    content = fault(path.read_bytes(), rng)
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def sign(folder: Path) -> None:
    """Takes the checksums again, so that they fit whatever is in the folder."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest.pop("manifest_sha256", None)
    for entry in manifest["files"]:
        content = (folder / entry["name"]).read_bytes()
        entry |= {"size_bytes": str(len(content)), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(json.dumps(manifest) + "\n")
