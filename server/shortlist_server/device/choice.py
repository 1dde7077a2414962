"""Which device is used, and how much of its memory."""

import logging
import os

import torch

log = logging.getLogger(__name__)

_WORKSPACE = ":16:8"
"""128 KiB of scratch memory for matrix products, by the variable CUBLAS_WORKSPACE_CONFIG. Every thread that re-ranks
keeps its own for good; by default it takes megabytes each, and a server may have hundreds of threads."""


def choose_device(name: str) -> torch.device:
    """The torch device that ``name`` means, tried out: what does not work fails now, not at the first request.

    Args:
        name: "cpu", "cuda", "cuda:1" …; "auto" for a GPU where there is one.

    Raises:
        RuntimeError: there is no such device here, or it does not work; the text says which there are.
    """
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise RuntimeError(f"the device must be auto, cpu, cuda or cuda:N, not {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise RuntimeError(f"the device must be auto, cpu, cuda or cuda:N, not {name!r}")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        why = "torch sees no GPU" if torch.version.cuda else "this torch is built without CUDA"
        raise RuntimeError(f"the device {name!r} cannot be used: {why}")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _WORKSPACE)
    count = torch.cuda.device_count()
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    if device.index >= count:
        raise RuntimeError(f"there is no device {name!r}: torch sees {count}, which begin with cuda:0")
    try:
        torch.zeros(1, device=device).cpu()
    except RuntimeError as error:
        raise RuntimeError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    log.info("user tables live on %s, %s", device, torch.cuda.get_device_name(device))
    return device


def memory_of(device: torch.device) -> dict[str, int]:
    """Bytes on a GPU by what for; nothing for the CPU, or for a GPU that answers no more.

    "used" and "total" are the whole GPU's, whoever uses it; "allocated" and "reserved" what torch has in this process,
    tables that are shared with other workers left out.
    """
    if device.type != "cuda":
        return {}
    try:
        free, total = torch.cuda.mem_get_info(device)
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    except (RuntimeError, AssertionError):  # the latter where torch has no CUDA
        return {}
    return {"allocated": allocated, "reserved": reserved, "used": total - free, "total": total}


def return_unused_memory(device: torch.device) -> None:
    """Gives back to a GPU what torch keeps for later, so that other processes, and shared tables, can have it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
