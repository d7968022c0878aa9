"""Thresholding: the predicted x₀ kept within the range of the data.

Near T an error in ε is one σ/α times as large, 150 times, in x₀: pictures end up all white or black where training has
not made it small. Of the two that a prediction is made of, x₀ is bounded; ε then follows from it, or stays as it was.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoisers import AbstractDenoiser, Wrapper
from sde_diffusion.errors import require, require_float
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number, column, per_example
from sde_diffusion.predictions import Prediction
from sde_diffusion.registry import Registry

THRESHOLDS: Registry[Threshold] = Registry("thresholding")


class Threshold(Wrapper):
    """A denoiser whose x₀ is bounded.

    Args:
        denoiser: the denoiser.
        keep_eps: leave ε as predicted, as the DDIM scheduler of ``diffusers`` does; else it follows the bounded x₀, and
            with it all other views, so that every sampler keeps to the bound.
    """

    def __init__(self, denoiser: AbstractDenoiser, keep_eps: bool = False) -> None:
        super().__init__(denoiser)
        require(isinstance(keep_eps, bool), "keep_eps", keep_eps, "True or False")
        self.keep_eps = keep_eps

    @abstractmethod
    def bounded(self, x0: Tensor) -> Tensor:
        """Return x₀ (B, *) within the bound."""

    def forward(self, x: Tensor, t: NoiseLevel | Number, **conditions: Any) -> Prediction:
        p = self.denoiser(x, t, **conditions)
        given = {"x0": self.bounded(p.x0)}
        if self.keep_eps:
            given["eps"] = p.eps
        return Prediction(p.x, p.level, given, variance_fraction=p.variance_fraction)


@THRESHOLDS.register("static")
class StaticThreshold(Threshold):
    """x₀ within [−bound, bound].

    Args:
        denoiser: the denoiser.
        bound: 1 for pictures in [−1, 1].
        keep_eps: leave ε as predicted.

    References:
        Ho et al. 2020, arXiv:2006.11239, whose code bounds pictures by 1; by its name, Saharia et al. 2022,
        arXiv:2205.11487, Section 2.3.
    """

    def __init__(self, denoiser: AbstractDenoiser, bound: float = 1.0, keep_eps: bool = False) -> None:
        super().__init__(denoiser, keep_eps)
        require_float("bound", bound, 0.0, open_low=True)
        self.bound = bound

    def bounded(self, x0: Tensor) -> Tensor:
        return x0.clamp(-self.bound, self.bound)


@THRESHOLDS.register("dynamic")
class DynamicThreshold(Threshold):
    """x₀ within [−s, s], divided by s, with s the percentile of |x₀| of each sample, at least 1.

    Args:
        denoiser: the denoiser.
        percentile: in (0, 1].
        max_value: the largest s; 0 for none.
        keep_eps: leave ε as predicted.

    References:
        C. Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding", 2022,
        arXiv:2205.11487, Section 2.3.
    """

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        percentile: float = 0.995,
        max_value: float = 0.0,
        keep_eps: bool = False,
    ) -> None:
        super().__init__(denoiser, keep_eps)
        require_float("percentile", percentile, 0.0, 1.0, open_low=True)
        require_float("max_value", max_value, 0.0)
        require(max_value == 0.0 or max_value >= 1.0, "max_value", max_value, "0, or a number of at least 1")
        self.percentile, self.max_value = percentile, max_value

    def bounded(self, x0: Tensor) -> Tensor:
        s = torch.quantile(per_example(x0).abs(), self.percentile, dim=1).clamp(1.0, self.max_value or None)
        bound = column(s, x0)
        return x0.clamp(-bound, bound) / bound
