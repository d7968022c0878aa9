"""Memory: what a device has, whether what is asked of it fits, and what to say where it did not."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import torch

from sde_diffusion.errors import require

MEMORY = Path("/proc/meminfo")
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says what memory is free, and how much a container may have."""
EXHAUSTED = re.compile(
    r"out of memory|not enough memory|(can't|cannot|unable to) allocate|alloc_failed|invalid buffer size|"
    r"storage size calculation overflowed|integer multiplication overflow|overflow when unpacking|"
    r"too (large|big) to convert|index-sized integer|array is too big|maximum allowed dimension|"
    r"numel.*overflow",
    re.IGNORECASE,
)
"""What PyTorch, NumPy and Python say of memory that is not to be had, and of sizes that no memory could hold."""


def available(device: torch.device | str = "cpu") -> float:
    """Return the bytes of memory that are free on a device, or would be made so; infinity where that cannot be told.

    Ours and not the package ``psutil``, which does not know the limits of containers.
    """
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    if device.type != "cpu":
        return math.inf
    free = math.inf
    for line in _text(MEMORY).splitlines():
        if line.startswith(("MemAvailable:", "SwapFree:")):
            free = 1024.0 * int(line.split()[1]) + (0.0 if free == math.inf else free)
    return min([free, *(float(text) for path in LIMITS if (text := _text(path)).isdigit()), *_process_limit()])


def _process_limit() -> list[float]:
    if sys.platform == "win32":
        return []
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return [] if limit == resource.RLIM_INFINITY else [float(limit)]


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip() if path.exists() else ""


def size_text(size: float) -> str:
    """Return a number of bytes in words."""
    return f"{size / 2**30:,.3g} GiB" if size >= 2**30 else f"{size / 2**20:,.3g} MiB"


def require_memory(
    name: str, value: object, needed: float, what: str, remedy: str = "", device: torch.device | str = "cpu"
) -> None:
    """Refuse what needs more memory than a device has, before any is taken.

    Args:
        name, value: of the argument that it is for.
        needed: bytes, at least.
        what: takes them.
        remedy: what to do instead.

    Raises:
        InputError: with what is needed and what there is.
    """
    have = available(device)
    expected = (
        f"what fits in the {size_text(have)} that are free ({device}), not {size_text(needed)} or more for {what}"
    )
    require(needed <= have, name, value, expected, remedy)


def exhausted(error: BaseException) -> str:
    """Return a line on an error that says that memory was not to be had; "" of any other."""
    kinds = (RuntimeError, OverflowError, ValueError, TypeError)
    told = isinstance(error, kinds) and EXHAUSTED.search(str(error)) is not None
    if not isinstance(error, MemoryError) and not told:
        return ""
    asked = re.search(r"tried to allocate (\d+) bytes", str(error))
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    wanted = f"{size_text(int(asked[1]))} were asked for at once" if asked else reason
    remedy = "lower the batch size, the number of samples, steps or probes, the size of pictures or of the network"
    return f"not enough memory: {wanted}; {size_text(available())} are free on this machine; {remedy}"
