"""Arrays of a safetensors file, memory-mapped.

The safetensors library copies into memory when it reads for numpy. A mapping costs no time at start and its pages are
shared by every process that serves the model. The layout is an 8-byte little-endian header length, a JSON header
and the arrays' bytes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shortlist_server.errors import BadModel, unreadable

_DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "U64": np.uint64,
    "U32": np.uint32,
    "U8": np.uint8,
}


def map_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file by name.

    Raises:
        BadModel: the file is no safetensors file, or holds a type that a model folder does not have.
    """
    try:
        # Copy on write: torch wants writable memory, and nothing that writes shall reach the file.
        # Seen as a plain array, which numpy slices several times faster than its memmap class.
        content = np.asarray(np.memmap(path, dtype=np.uint8, mode="c"))
        header_length = int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8 : 8 + header_length].tobytes())
        data = content[8 + header_length :]
        arrays = {}
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                arrays[name] = data[start:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    except OSError as error:
        raise unreadable(path.name, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise BadModel(f"{path.name} is not a readable safetensors file") from error
    return arrays
