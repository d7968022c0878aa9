"""A network of one's own that is told classes and a number: two dense layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from sde_diffusion.errors import require_int
from sde_diffusion.networks import NETWORKS


@NETWORKS.register("own_conditional")
class TwoLayersTold(nn.Module):
    """x (B, d), label (B,), classes (B,), scale (B,) → (B, d); classes may be left out, or num_classes for none."""

    conditions = ("classes", "scale")
    null_class = True

    def __init__(self, shape: Sequence[int], width: int = 32, num_classes: int = 2) -> None:
        super().__init__()
        require_int("width", width, 1)
        require_int("num_classes", num_classes, 1)
        self.num_classes = num_classes
        told = shape[0] + 2 + num_classes + 1
        self.layers = nn.Sequential(nn.Linear(told, width), nn.SiLU(), nn.Linear(width, shape[0]))

    def forward(self, x: Tensor, label: Tensor, scale: Tensor, classes: Tensor | None = None) -> Tensor:
        none = torch.full(x.shape[:1], self.num_classes, device=x.device)
        code = one_hot(none if classes is None else classes, self.num_classes + 1).to(x)
        out: Tensor = self.layers(torch.cat([x, label[:, None], scale[:, None], code], dim=1))
        return out
