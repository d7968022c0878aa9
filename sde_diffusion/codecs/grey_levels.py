"""Grey levels to [−1, 1], each spread over its cell for a density.

Networks see numbers in [−1, 1]. Pictures are whole grey levels 0 … L−1, and two maps lead from them to model space:

    the point   z = 2 k/(L−1) − 1              levels at both ends of [−1, 1]
    the cell    z = 2 (k + u − ½)/(L−1) − 1    u ~ U[0, 1): every level fills the cell around it; what a density is of

The cells, 2/(L−1) wide, are those of DDPM's discrete decoder (Ho et al. 2020, arXiv:2006.11239, Eq. 13), so that a
density, a bound and a sample speak of the same numbers. The probability of a level is the density's mass in its cell,

    P(k) = cell^D E_u p(z),    log P(k) ≥ E_u log p(z) + D log cell.

References:
    L. Theis, A. van den Oord, M. Bethge, "A note on the evaluation of generative models", 2016, arXiv:1511.01844
    (the likelihood of uniformly dequantised data bounds that of the levels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from sde_diffusion.codecs.base import CODECS, Codec, check_model_space
from sde_diffusion.data import Dataset
from sde_diffusion.errors import require, require_int
from sde_diffusion.noise import NoiseStream


@CODECS.register("grey_levels")
@dataclass(frozen=True)
class GreyLevels(Codec):
    """2 (k + u − ½)/(L−1) − 1, the uniform dequantisation of levels 0 … L−1; u = ½ without noise.

    Args:
        levels: their number L, 2 … 256.
        dequantise: whether noise is used where it is given; else z is always the point in the middle of the cell. What
            is trained on points alone has spikes there: its density moves with the time at which it is asked for.
    """

    levels: int
    dequantise: bool = True

    def __post_init__(self) -> None:
        require_int("levels", self.levels, 2)
        require(self.levels <= 256, "levels", self.levels, "at most 256 grey levels (uint8)")
        require(isinstance(self.dequantise, bool), "dequantise", self.dequantise, "True or False")

    @classmethod
    def of(cls, dataset: Dataset, **options: Any) -> Self:
        levels = dataset.levels or 0
        remedy = "take standardised, or identity"
        require(
            levels > 0, "codec.name", "grey_levels", f"a codec for {dataset.name}, which has no grey levels", remedy
        )
        return cls(levels, **options)

    def encode(self, x: Tensor, noise: NoiseStream | None = None) -> tuple[Tensor, Tensor]:
        require(x.dtype == torch.uint8, "x dtype", x.dtype, f"uint8, grey levels 0 to {self.levels - 1}")
        size = math.prod(x.shape[1:])
        weight = torch.full((len(x),), math.log(self.cell) * size, dtype=torch.float64)
        if noise is None or not self.dequantise:
            return x.to(torch.float32) / (self.levels - 1) * 2.0 - 1.0, weight
        u = noise.uniform(size, x.device).float().reshape(x.shape)
        return (x + (u - 0.5)) * self.cell - 1.0, weight

    def decode(self, z: Tensor) -> Tensor:
        """Round to the nearest level and clamp: (B, *) → uint8."""
        check_model_space(z)
        return ((z + 1.0) * (0.5 * (self.levels - 1))).round().clamp(0, self.levels - 1).to(torch.uint8)

    @property
    def cell(self) -> float:
        """2/(L−1), dz/dk of both maps."""
        return 2.0 / (self.levels - 1)

    @property
    def density(self) -> GreyLevels:
        """Of points there is none: that of the levels spread over their cells."""
        return replace(self, dequantise=True)


def to_uint8(k: Tensor, levels: int) -> Tensor:
    """Return grey levels 0 … L−1 as 8-bit pictures, 0 … 255, whatever their number."""
    return (k.to(torch.float32) * (255.0 / (levels - 1))).round().to(torch.uint8)
