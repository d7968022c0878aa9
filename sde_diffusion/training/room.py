"""Whether a training fits into memory, before it takes any: its weights, and what each example of a batch needs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sde_diffusion.memory import exhausted, require_memory

COPIES = 5
"""What is held of each weight: itself, its gradient, its average and two moments."""
ARRAYS = 3
"""What is held of each example, whatever the network: itself, noise, and what the network is given."""


def require_room(
    name: str,
    network: nn.Module,
    shape: tuple[int, ...],
    batch_size: int,
    losses: Callable[[int], Tensor] | None,
) -> None:
    """Refuse a network or a batch that cannot fit, by the least that they need.

    Args:
        name: of the network.
        network: on its device.
        shape: of an example.
        losses: ``losses(n)`` returns those of n examples, of which is measured what they leave for their gradients;
            None where that says nothing of how the network is run.

    Raises:
        InputError: says what is needed and what there is.
    """
    device = next(network.parameters()).device
    weights = (COPIES - 1) * sum(p.numel() * p.element_size() for p in network.parameters())  # one is there
    size = sum(p.numel() for p in network.parameters())
    require_memory(
        f"parameters of network.{name}",
        size,
        weights,
        "gradients, averages and moments",
        "make the network smaller",
        device,
    )
    remedy = "give a smaller --config.training.batch_size"
    arrays = ARRAYS * 4.0 * batch_size * math.prod(shape)
    require_memory("training.batch_size", batch_size, arrays, "its examples", remedy)
    if losses is None or batch_size == 1:
        return
    mode = network.training
    network.eval()  # no statistics of these few are kept
    try:
        one, two = (_left_for_gradients(losses, n) for n in (1, 2))  # whose difference is free of what all share
    except Exception as error:
        if exhausted(error):
            raise
        return  # an objective that does not take so few: the training will tell
    finally:
        network.train(mode)
    needed = weights + float(batch_size) * (two - one)
    require_memory("training.batch_size", batch_size, needed, "its gradients", remedy, device)


def _left_for_gradients(losses: Callable[[int], Tensor], n: int) -> int:
    """Return the bytes of all that the losses of n examples leave for their gradients."""
    seen: dict[int, int] = {}

    def see(x: Tensor) -> Tensor:
        place = x.untyped_storage()
        seen[place.data_ptr()] = min(place.nbytes(), x.numel() * x.element_size())
        return x

    with torch.autograd.graph.saved_tensors_hooks(see, lambda x: x):
        found = losses(n)
    del found  # it has kept them, each in its place, until here
    return sum(seen.values())
