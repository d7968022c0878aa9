"""Exponential moving average of the weights, with warm-up."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sde_diffusion.errors import require_float


class EMA:
    """A copy of a network whose weights trail those in training.

    After update n (counted from 0) the weight of the past is min(decay, (1 + n)/(10 + n)), so that the average is not
    dominated early by the random start.

    ``torch.optim.swa_utils.AveragedModel`` is not used: it reads its counter back from the device at each update.

    Args:
        network: the network in training, or one whose weights are averages already.
        decay: in [0, 1).

    Attributes:
        network: the copy.
        updates: their number.

    References:
        Ho et al. 2020, arXiv:2006.11239, Appendix B (0.9999); Song et al. 2021, arXiv:2011.13456, Appendix H.
    """

    def __init__(self, network: nn.Module, decay: float = 0.9999) -> None:
        require_float("ema_decay", decay, 0.0, 0.999999999)
        self.decay, self.updates = decay, 0
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._shadow: list[Tensor] = list(self.network.parameters())

    @torch.no_grad()
    def update(self, network: nn.Module, skip: Tensor | None = None) -> None:
        """Move the average towards the weights of ``network``; buffers are copied.

        Args:
            skip: () bool on the device; where it is true the average of the weights stays, though the update counts.
        """
        skip = self._shadow[0].new_zeros((), dtype=torch.bool) if skip is None else skip
        weight = (1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))) * ~skip
        for shadow, parameter in zip(self._shadow, network.parameters(), strict=True):
            shadow.lerp_(parameter, weight.to(shadow.dtype))
        for shadow, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            shadow.copy_(buffer)
        self.updates += 1
