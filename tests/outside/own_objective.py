"""An objective of one's own: an error of the noise of which large ones count less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from sde_diffusion.errors import require_float
from sde_diffusion.noise import NoiseStream
from sde_diffusion.objectives import OBJECTIVES, TIMES, Objective, TimeDistribution, as_denoiser
from sde_diffusion.ops import per_example
from sde_diffusion.registry import Registry


@OBJECTIVES.register("own_objective")
class PseudoHuber(Objective):
    """√(‖ε̂ − ε‖² + c²) − c: the metric of Song & Dhariwal 2023, arXiv:2310.14189, Section 3.3, on the noise."""

    parts: ClassVar[Mapping[str, Registry[Any]]] = {"times": TIMES}

    def __init__(self, times: str | Mapping[str, Any] | TimeDistribution = "stratified", c: float = 0.03) -> None:
        require_float("c", c, 0.0, open_low=True)
        self.times, self.c = TIMES.part(times), c

    def __call__(self, model: nn.Module, x: Tensor, noise: NoiseStream, **conditions: Any) -> Tensor:
        denoiser = as_denoiser(model)
        t, factor = self.times(denoiser.sde, noise.uniform(1, x.device)[:, 0])
        level, eps = denoiser.sde.at(t), noise(x)
        here = level.like(x)
        error = denoiser(here.alpha * x + here.sigma * eps, level, **conditions).eps - eps
        squared = per_example(error).square().sum(dim=1)
        return factor.to(x) * ((squared + self.c**2).sqrt() - self.c)
