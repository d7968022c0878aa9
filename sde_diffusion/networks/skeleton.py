"""A network's skeleton: all its layers and no numbers, by which its size is known before any memory is taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from sde_diffusion.errors import InputError, require
from sde_diffusion.memory import exhausted, require_memory
from sde_diffusion.networks.layers import NETWORKS

TENSORS = 10_000
"""Most tensors of parameters: the largest networks of the field have a few thousand."""


def skeleton(name: str, **options: Any) -> nn.Module:
    """Build a network on the meta device, where tensors have shapes and no numbers.

    It is measured as it grows, so that a million blocks, or a billion channels, are refused at once, in whatever
    options a network has them.

    Args:
        name: of a registered network.
        options: of it, "shape" among them.

    Raises:
        InputError: if it refuses its options, or its parameters would not fit into memory.
    """
    remedy, count, size = "make it smaller by its options", 0, 0

    def measure(module: nn.Module, key: str, tensor: torch.Tensor | None) -> None:
        nonlocal count, size
        count, size = count + 1, size + (0 if tensor is None else tensor.nbytes)
        require(count <= TENSORS, "network.name", name, f"at most {TENSORS:,} tensors in it", remedy)
        if count % 100 == 0:
            require_memory("network.name", name, size, "its tensors", remedy)

    hooks = [register_module_parameter_registration_hook(measure), register_module_buffer_registration_hook(measure)]
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = NETWORKS.build(name, **options)
    except RuntimeError as error:
        if not exhausted(error):
            raise
        # A product of sizes that no 64-bit number holds.
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"network.name={name!r}: cannot be built ({reason}); {remedy}") from None
    finally:
        for hook in hooks:
            hook.remove()
    require_memory("network.name", name, size, "its tensors", remedy)
    return network


def require_size(name: str, **options: Any) -> None:
    """Refuse a network that would not fit into memory, without building it.

    One of a person's own may need numbers to be built, and is then not measured.

    Raises:
        InputError: as :func:`skeleton`.
    """
    try:
        skeleton(name, **options)
    except InputError:
        raise
    except Exception:  # whatever a person's code raises on tensors without numbers
        return
