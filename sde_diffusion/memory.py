"""Memory: what a device has, whether what is asked of it fits, and what to say where it did not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sde_diffusion.errors import require

MEMORY = Path("/proc/meminfo")
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says what memory is free, and how much a container may have."""
MOST_PARAMETERS = 10_000
"""Tensors of weights. The largest networks there are have some 2,000, and Python takes minutes for a million."""
EXHAUSTED = re.compile(
    r"out of memory|not enough memory|(can't|cannot|unable to) allocate|alloc_failed|invalid buffer size|"
    r"storage size calculation overflowed|integer multiplication overflow|overflow when unpacking|"
    r"too (large|big) to convert|index-sized integer|array is too big|maximum allowed dimension|"
    r"numel.*overflow",
    re.IGNORECASE,
)
"""What PyTorch, NumPy and Python say of memory that is not to be had, and of sizes that no memory could hold."""


def available(device: torch.device | str = "cpu") -> float:
    """Return the bytes of memory that are free on a device, or would be made so; infinity where that cannot be told."""
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
    return min([free, *(float(text) for path in LIMITS if (text := _text(path)).isdigit())])


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip() if path.exists() else ""


def size_text(size: float) -> str:
    """Return a number of bytes in words."""
    return f"{size / 2**30:,.3g} GiB" if size >= 2**30 else f"{size / 2**20:,.3g} MiB"


def require_memory(name: str, value: object, needed: float, remedy: str, device: torch.device | str = "cpu") -> None:
    """Refuse what needs more memory than a device has, before any is taken.

    Args:
        name, value: of the argument that it is for.
        needed: bytes, at least.

    Raises:
        InputError: with what is needed and what there is.
    """
    _require(name, value, needed, available(device), str(device), remedy)


def _require(name: str, value: object, needed: float, have: float, where: str, remedy: str) -> None:
    expected = f"what fits in the {size_text(have)} that are free ({where}), not {size_text(needed)} or more"
    require(needed <= have, name, value, expected, remedy)


@contextmanager
def bounded_network(name: str, options: object, copies: int) -> Iterator[None]:
    """Within it, stop the making of a network whose weights, all together, do not fit; before they are filled.

    Args:
        name, options: of the network, for the message.
        copies: how often the weights will be held.
    """
    have = available()
    size = count = 0

    def see(module: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        nonlocal size, count
        if parameter is None or parameter.is_meta:
            return
        size, count = size + parameter.numel() * parameter.element_size(), count + 1
        remedy = "make it smaller: fewer channels, blocks or levels"
        _require(name, options, copies * size, have, "cpu", remedy)
        require(count <= MOST_PARAMETERS, name, options, f"at most {MOST_PARAMETERS:,} tensors of weights", remedy)

    hook = register_module_parameter_registration_hook(see)
    try:
        yield
    finally:
        hook.remove()


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
