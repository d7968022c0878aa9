"""How much memory there is: what is too large is refused before any of it is taken, by one check for all of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

from sde_diffusion.errors import require


def free_memory() -> float:
    """Return how much memory in bytes this process may still take; infinity where the system does not tell.

    Ours and not the package ``psutil``, which does not know the limits of containers.
    """
    found = list(_limits())
    if sys.platform != "win32":
        import resource

        found += [limit for limit in resource.getrlimit(resource.RLIMIT_AS)[:1] if limit != resource.RLIM_INFINITY]
    return min(found, default=math.inf)


def _limits() -> Iterator[float]:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            yield float(Path(path).read_text(encoding="ascii"))
        except (OSError, ValueError):  # not there, or "max"
            continue
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    sizes = {line.partition(":")[0]: line.split()[1] for line in lines}
    yield 1024.0 * sum(int(sizes.get(key, 0)) for key in ("MemAvailable", "SwapFree"))


def require_memory(name: str, value: object, size: float, what: str, remedy: str = "") -> None:
    """Refuse what would not fit into memory, before any of it is taken.

    Args:
        name: of the argument.
        value: that was given for it.
        size: estimate in bytes.
        what: takes that much, for the message.
        remedy: what to do instead.

    Raises:
        InputError: if there is less; names both sizes.
    """
    there = free_memory()
    expected = f"{what}, {size / 2**30:.3g} GiB, to fit into memory, of which {there / 2**30:.3g} GiB are free"
    require(size <= there, name, value, expected, remedy)
