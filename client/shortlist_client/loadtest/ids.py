"""Whom to ask for: the ids of a published model or of a file, and how often each comes up."""

import json
import math
import mmap
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_LONGEST_HEADER = 100 << 20
_LONGEST_ID_BYTES = 512  # of the wire contract
_GOLDEN = 0.6180339887
MOST_SKEW = 20.0
"""Of ``Zipf``: one in a million asks for the second most popular then, and far steeper curves leave no numbers."""


class IdsError(Exception):
    """The ids cannot be read; says which file and why."""


class ModelIds(Sequence[str]):
    """The ids of a table of the model folder (docs/model-format.md), read where they lie.

    A hundred million ids take no more memory than those that were asked for. Travels between processes by its path.

    Args:
        path: user_ids.safetensors or item_ids.safetensors.

    Raises:
        IdsError: there is no such file, or it is no id table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise IdsError(f"{path}: {error}") from error
        tensors, self._data = _safetensors_header(path, self._content)
        self._text, text_end = _place(path, tensors, "text", "U8", 1)
        self._offsets, offsets_end = _place(path, tensors, "offsets", "U64", 8)
        if self._data + max(text_end, offsets_end) > len(self._content):
            raise IdsError(f"{path}: the file is shorter than its header says")
        self._count = (offsets_end - self._offsets) // 8 - 1
        if self._count < 1:
            raise IdsError(f"{path}: it holds no id")
        self._text_length = text_end - self._text

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < self._count:
            raise IndexError(row)
        first, last = struct.unpack_from("<QQ", self._content, self._data + self._offsets + 8 * row)
        if not first < last <= self._text_length:
            raise IdsError(f"{self.path}: the id of row {row} is not where the table says")
        begin = self._data + self._text
        return self._content[begin + first : begin + last].decode()

    def __reduce__(self) -> tuple[type["ModelIds"], tuple[Path]]:
        return ModelIds, (self.path,)


def _safetensors_header(path: Path, content: mmap.mmap) -> tuple[dict[str, Any], int]:
    """The tensors' descriptions and where their data begins: https://huggingface.co/docs/safetensors."""
    try:
        (length,) = struct.unpack_from("<Q", content)
        if length > min(_LONGEST_HEADER, len(content) - 8):
            raise ValueError("its header is longer than the file")
        header = json.loads(content[8 : 8 + length])
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
    except (struct.error, ValueError) as error:
        raise IdsError(f"{path}: not a safetensors file: {error}") from error
    return header, 8 + length


def _place(path: Path, tensors: dict[str, Any], name: str, kind: str, width: int) -> tuple[int, int]:
    """Where a flat tensor of a type begins and ends in the data, in bytes."""
    try:
        tensor = tensors[name]
        (length,), (begin, end) = tensor["shape"], tensor["data_offsets"]
        right = tensor["dtype"] == kind and end - begin == length * width and begin >= 0
    except (KeyError, TypeError, ValueError):
        right = False
    if not right:
        raise IdsError(f"{path}: not an id table: it has no flat tensor {name!r} of type {kind}")
    return begin, end


def read_ids(path: Path) -> tuple[str, ...]:
    """The ids of a text file in UTF-8, one a line; empty lines and blanks around an id do not count.

    A newline alone ends a line: an id may hold what else Unicode takes for the end of one.

    Raises:
        IdsError: the file cannot be read, holds no id, or one that no request can carry.
    """
    try:
        lines = [line.strip() for line in path.read_bytes().decode("utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise IdsError(f"{path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if len(line.encode()) > _LONGEST_ID_BYTES:
            raise IdsError(f"{path}, line {number}: an id has {_LONGEST_ID_BYTES} bytes at most")
    ids = tuple(filter(None, lines))
    if not ids:
        raise IdsError(f"{path}: it holds no id")
    return ids


def newest_version(models_dir: Path, wanted: Sequence[str] = ("users",)) -> Path:
    """The folder of the newest version in a models folder.

    Args:
        models_dir: the models folder.
        wanted: what its ids are needed for, as the options for files of them are called.

    Raises:
        IdsError: there is none.
    """
    versions = [entry for entry in models_dir.glob("*/") if entry.name.isdecimal()]
    if not versions:
        files = ", ".join(f"--{name}" for name in wanted)
        # Which takes the place of a file of users.
        folder = ", a version's folder (--users-from-model)" if "users" in wanted else ""
        raise IdsError(
            f"there is no model in {models_dir} to draw {' and '.join(wanted)} from: "
            f"name a file of ids ({files}){folder} or the models folder (--models-dir)"
        )
    return max(versions, key=lambda entry: int(entry.name))


class Zipf:
    """Draws places of a list so that the r-th most popular comes up in proportion to 1 / r^skew.

    Rejection-inversion: W. Hörmann, G. Derflinger, "Rejection-inversion to generate variates from monotone discrete
    distributions", ACM TOMACS 6(3), 1996. It takes no table, whatever the number of places. Which places are popular is
    scattered over the list.

    Args:
        count: how many places.
        skew: 0 for all alike, MOST_SKEW at most.
        rng: draws.
    """

    def __init__(self, count: int, skew: float, rng: random.Random) -> None:
        self._count, self._skew, self._random = count, skew, rng.random
        self._first = self._integral(1.5) - 1.0
        self._last = self._integral(count + 0.5)
        self._sure = 2.0 - self._inverse(self._integral(2.5) - 2.0**-skew)
        self._step = max(1, round(count * _GOLDEN))
        while math.gcd(self._step, count) != 1:
            self._step += 1

    def draw(self) -> int:
        """A place, from 0 on."""
        return self.rank() * self._step % self._count

    def rank(self) -> int:
        """A rank of popularity, 1 being the most popular."""
        while True:
            area = self._last + self._random() * (self._first - self._last)
            point = self._inverse(area)
            rank = min(max(int(point + 0.5), 1), self._count)
            if rank - point <= self._sure or area >= self._integral(rank + 0.5) - float(rank) ** -self._skew:
                return rank

    def _integral(self, x: float) -> float:
        """Of 1 / t^skew, from 1 to x."""
        power = 1.0 - self._skew
        return math.log(x) if abs(power) < 1e-9 else (x**power - 1.0) / power

    def _inverse(self, area: float) -> float:
        power = 1.0 - self._skew
        if abs(power) < 1e-9:
            return math.exp(area)
        # At the far end of a steep curve rounding would bring the base to 0.
        smallest = (self._count + 0.5) ** power if power < 0 else 0.0
        return float(max(1.0 + area * power, smallest) ** (1.0 / power))
