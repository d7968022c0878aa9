"""A network of one's own: two dense layers that are told the noise level."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sde_diffusion.errors import require_int
from sde_diffusion.networks import NETWORKS


@NETWORKS.register("own_network")
class TwoLayers(nn.Module):
    """x (B, *shape), label (B,) → (B, *shape)."""

    def __init__(self, shape: Sequence[int], width: int = 32) -> None:
        super().__init__()
        require_int("width", width, 1)
        size = math.prod(shape)
        self.layers = nn.Sequential(nn.Linear(size + 1, width), nn.SiLU(), nn.Linear(width, size))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([x.flatten(1), label[:, None]], dim=1))
        return out.reshape(x.shape)
